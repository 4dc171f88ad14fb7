// Runs a kernel's source on the CPU, a fiber for each thread: what lanes exchange, and what threads, blocks and clusters wait for, are places where a
// fiber waits for others. One cluster after the other; a wait that cannot end is an error, not a hang. Slow (about a millisecond for
// a warp and 16 tokens) and without a memory model: it shows wrong arithmetic and wrong indices, never a missing fence.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

namespace rarefy::emulation {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// What the running thread sees.
const Index& thread_index();
const Index& block_index();
const Index& block_size();
const Index& grid_size();
char* block_memory();                   // dynamic shared memory of its block
char* block_memory(int rank);           // of a block of its cluster
int block_rank_of(const void* shared);  // which of them a place in shared memory belongs to; not a tensor

// What a thread waits for. All lanes of a warp take part in the first two.
void wait_for_warp();
std::array<const unsigned char*, 32> exchange(const void* own,
                                              std::size_t bytes);  // of every lane; valid until the next exchange but one
void wait_for_block();
void arrive_at_cluster();
void wait_for_cluster();
void wait_for_earlier_kernels();

// Copies that have been started: done, or not yet, when the thread waits for them; never seen before.
void start_copy(uint32_t to, const char* from, bool wanted);  // from [16] bytes; to: offset in the block's shared memory
void commit_copies();
void wait_for_copies(int later_groups);

// Every lane's value.
template <typename T>
std::array<T, 32> lanes_of(const T& own) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto from = exchange(&own, sizeof(T));
  std::array<T, 32> result;
  for (std::size_t lane = 0; lane < result.size(); ++lane) std::memcpy(&result[lane], from[lane], sizeof(T));
  return result;
}

// The device that the runtime describes; small, so that a test needs few lists to fill it.
struct Model {
  int compute_capability = 90, multiprocessors = 4, shared_bytes = 228 << 10, max_cluster = 16;
};
Model& model();

// Memory that an earlier kernel is still writing: until the wait for earlier kernels it reads as `stale`.
struct Stale {
  void* at = nullptr;                   // not a tensor: any memory
  std::vector<unsigned char> contents;  // [bytes]
};
void set_stale(std::vector<Stale> stale);

// How often clusters of more than one block ran since the last call.
int take_cluster_launches();

void run(const cudaLaunchConfig_t& config, const std::function<void()>& thread);

}  // namespace rarefy::emulation
