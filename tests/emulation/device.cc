#include "tests/emulation/device.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

namespace rarefy::emulation {
namespace {

constexpr int kWarp = 32, kExchangeBytes = 64;
constexpr std::size_t kStackBytes = 128 << 10;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulated device: %s\n", what);
  std::abort();
}

// Threads that wait for each other again and again.
struct Barrier {
  int expected = 0, arrived = 0, leaving = 0;
  int64_t generation = 0;

  void release_if_full() {
    if (arrived < expected || arrived == 0) return;
    expected -= leaving;
    arrived = leaving = 0, ++generation;
  }
  int64_t arrive() {
    const int64_t own = generation;
    ++arrived;
    release_if_full();
    return own;
  }
  // For good; `has_arrived`: but without waiting for those it arrived with.
  void leave(bool has_arrived) {
    if (has_arrived) {
      ++leaving;
    } else {
      --expected;
      release_if_full();
    }
  }
};

struct Warp {
  Barrier barrier;
  int64_t exchanges[kWarp] = {};
  unsigned char values[2][kWarp][kExchangeBytes];
};

struct Block {
  Index index;
  std::vector<char> storage;  // dynamic shared memory, with room to align it
  char* memory = nullptr;
  Barrier barrier;
  std::vector<Warp> warps;
};

struct Copy {
  char* to;
  const char* from;
  bool wanted;
};

struct Thread {
  ucontext_t context;
  Index index;
  Block* block = nullptr;
  Warp* warp = nullptr;
  bool done = false;
  int64_t cluster_generation = -1;          // of its last arrival
  std::deque<std::vector<Copy>> groups{1};  // the last is being filled
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Thread>> threads;
  Barrier barrier, earlier_kernels;
  std::vector<Stale> actual;  // what is really where memory reads as stale
};

Model the_model;
std::vector<Stale> the_stale;
int the_cluster_launches = 0;
Index the_block_size, the_grid_size;
Cluster* the_cluster = nullptr;
Thread* the_thread = nullptr;
ucontext_t the_scheduler;
const std::function<void()>* the_body = nullptr;
bool progress = false;

void yield() { swapcontext(&the_thread->context, &the_scheduler); }

void wait_until(const Barrier& barrier, int64_t generation) {
  while (barrier.generation == generation) yield();
  progress = true;
}

void swap_stale(std::vector<Stale>& with) {
  for (Stale& stale : with) {
    for (std::size_t i = 0; i < stale.contents.size(); ++i)
      std::swap(stale.contents[i], static_cast<unsigned char*>(stale.at)[i]);
  }
}

void thread_main() {
  (*the_body)();
  Thread& self = *the_thread;
  self.done = true;
  progress = true;
  // Who has left is not waited for.
  self.warp->barrier.leave(false);
  self.block->barrier.leave(false);
  the_cluster->barrier.leave(self.cluster_generation == the_cluster->barrier.generation);
  the_cluster->earlier_kernels.leave(false);
  yield();
  fail("a thread that has left was resumed");
}

// Stacks are used again by the next cluster.
std::vector<std::unique_ptr<char[]>> the_stacks;

void run_cluster(const cudaLaunchConfig_t& config, Index first, Index size) {
  Cluster cluster;
  the_cluster = &cluster;
  const int block_threads = static_cast<int>(config.blockDim.x);
  if (block_threads % kWarp != 0 || config.blockDim.y != 1 || config.blockDim.z != 1)
    fail("expected blocks of whole warps in one dimension");
  for (unsigned z = 0; z < size.z; ++z) {
    for (unsigned y = 0; y < size.y; ++y) {
      for (unsigned x = 0; x < size.x; ++x) {
        auto block = std::make_unique<Block>();
        block->index = {first.x + x, first.y + y, first.z + z};
        constexpr std::size_t kAlign = 1024;
        block->storage.assign(config.dynamicSmemBytes + kAlign, static_cast<char>(0xff));  // NaN
        block->memory = block->storage.data() + (kAlign - reinterpret_cast<std::uintptr_t>(block->storage.data()) % kAlign);
        block->barrier.expected = block_threads;
        block->warps.resize(static_cast<std::size_t>(block_threads / kWarp));
        for (Warp& warp : block->warps) warp.barrier.expected = kWarp;
        cluster.blocks.push_back(std::move(block));
      }
    }
  }
  cluster.barrier.expected = cluster.earlier_kernels.expected = block_threads * static_cast<int>(cluster.blocks.size());
  for (const auto& block : cluster.blocks) {
    for (int i = 0; i < block_threads; ++i) {
      auto thread = std::make_unique<Thread>();
      thread->index.x = static_cast<unsigned>(i);
      thread->block = block.get();
      thread->warp = &block->warps[static_cast<std::size_t>(i / kWarp)];
      if (the_stacks.size() == cluster.threads.size()) the_stacks.emplace_back(new char[kStackBytes]);
      getcontext(&thread->context);
      thread->context.uc_stack.ss_sp = the_stacks[cluster.threads.size()].get();
      thread->context.uc_stack.ss_size = kStackBytes;
      thread->context.uc_link = nullptr;
      makecontext(&thread->context, thread_main, 0);
      cluster.threads.push_back(std::move(thread));
    }
  }
  cluster.actual = the_stale;
  swap_stale(cluster.actual);
  for (std::size_t left = cluster.threads.size(); left > 0;) {
    progress = false;
    for (const auto& thread : cluster.threads) {
      if (thread->done) continue;
      the_thread = thread.get();
      swapcontext(&the_scheduler, &thread->context);
      if (thread->done) --left;
    }
    if (!progress) fail("threads wait for what cannot happen");
  }
  the_thread = nullptr;
  the_cluster = nullptr;
}

}  // namespace

const Index& thread_index() { return the_thread->index; }
const Index& block_index() { return the_thread->block->index; }
const Index& block_size() { return the_block_size; }
const Index& grid_size() { return the_grid_size; }
char* block_memory() { return the_thread->block->memory; }
char* block_memory(int rank) { return the_cluster->blocks.at(static_cast<std::size_t>(rank))->memory; }
int block_rank_of(const void* shared) {
  for (std::size_t rank = 0; rank < the_cluster->blocks.size(); ++rank) {
    const std::vector<char>& storage = the_cluster->blocks[rank]->storage;
    if (shared >= storage.data() && shared < storage.data() + storage.size()) return static_cast<int>(rank);
  }
  fail("not a place in the cluster's shared memory");
}

void wait_for_warp() { wait_until(the_thread->warp->barrier, the_thread->warp->barrier.arrive()); }

std::array<const unsigned char*, 32> exchange(const void* own, std::size_t bytes) {
  if (bytes > kExchangeBytes) fail("more bytes than lanes exchange");
  Warp& warp = *the_thread->warp;
  const unsigned own_lane = the_thread->index.x % kWarp;
  const int side = static_cast<int>(warp.exchanges[own_lane]++ % 2);
  std::memcpy(warp.values[side][own_lane], own, bytes);
  wait_for_warp();
  std::array<const unsigned char*, 32> result;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (warp.exchanges[lane] < warp.exchanges[own_lane]) fail("lanes exchange values at different places");
    result[static_cast<std::size_t>(lane)] = warp.values[side][lane];
  }
  return result;
}

void wait_for_block() { wait_until(the_thread->block->barrier, the_thread->block->barrier.arrive()); }
void arrive_at_cluster() { the_thread->cluster_generation = the_cluster->barrier.arrive(); }
void wait_for_cluster() { wait_until(the_cluster->barrier, the_thread->cluster_generation); }

// All of the cluster arrive before memory changes, so that what they read before is stale for every one.
void wait_for_earlier_kernels() {
  const int64_t generation = the_cluster->earlier_kernels.arrive();
  if (the_cluster->earlier_kernels.generation != generation) swap_stale(the_cluster->actual);
  wait_until(the_cluster->earlier_kernels, generation);
}

void start_copy(uint32_t to, const char* from, bool wanted) {
  the_thread->groups.back().push_back({the_thread->block->memory + to, from, wanted});
}
void commit_copies() { the_thread->groups.emplace_back(); }
void wait_for_copies(int later_groups) {
  auto& groups = the_thread->groups;
  while (groups.size() > static_cast<std::size_t>(later_groups) + 1) {
    for (const Copy& copy : groups.front()) {
      if (copy.wanted) {
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
    groups.pop_front();
  }
}

Model& model() { return the_model; }
void set_stale(std::vector<Stale> stale) { the_stale = std::move(stale); }
int take_cluster_launches() { return std::exchange(the_cluster_launches, 0); }

void run(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  Index size{1, 1, 1};
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id != cudaLaunchAttributeClusterDimension) continue;
    size = {config.attrs[i].val.clusterDim.x, config.attrs[i].val.clusterDim.y, config.attrs[i].val.clusterDim.z};
  }
  const dim3 grid = config.gridDim;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) fail("a grid of at least one block was expected");
  if (grid.x % size.x != 0 || grid.y % size.y != 0 || grid.z % size.z != 0) fail("a grid of whole clusters was expected");
  the_cluster_launches += size.x * size.y * size.z > 1 ? 1 : 0;
  the_block_size = {config.blockDim.x, config.blockDim.y, config.blockDim.z};
  the_grid_size = {grid.x, grid.y, grid.z};
  the_body = &thread;
  for (unsigned z = 0; z < grid.z; z += size.z) {
    for (unsigned y = 0; y < grid.y; y += size.y) {
      for (unsigned x = 0; x < grid.x; x += size.x) run_cluster(config, {x, y, z}, size);
    }
  }
  the_body = nullptr;
}

}  // namespace rarefy::emulation
