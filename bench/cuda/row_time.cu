// Times ways of fetching random rows of 256 bytes into shared memory, with nothing else to do: what a decode kernel that gathers rows can
// hope for. Every warp has a ring of stages of 32 rows and fetches into a stage again as soon as it is full.
//
//   row_time        one line per way: blocks on a multiprocessor, warps, stages, KB under way on a multiprocessor, TB/s
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "timing.cuh"

namespace {

constexpr int kRowBytes = 256, kStageRows = 32, kStageBytes = kStageRows * kRowBytes;
constexpr int kMaxStages = 32, kMaxWarps = 4;
enum class Way { bulk, async };  // cp.async.bulk of a row by one lane; cp.async of 16 bytes by each of 16 lanes

__device__ uint32_t shared_address(const void* pointer) {  // not a tensor: any shared memory
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ uint32_t scramble(uint32_t x) {
  x *= 2654435761u, x ^= x >> 16, x *= 0x85ebca6bu, x ^= x >> 13, x *= 0xc2b2ae35u;
  return x ^ x >> 16;
}
__device__ void wait_at(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  }
}

template <Way kWay>
__device__ void fetch(const char* pool, uint32_t row_mask, uint32_t seed, uint32_t to,
                      uint32_t barrier) {  // pool [rows, 256] bytes
  const uint32_t lane = threadIdx.x % 32, mine = scramble(seed + lane) & row_mask;
  if constexpr (kWay == Way::bulk) {
    if (lane == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "n"(kStageRows * kRowBytes)
                   : "memory");
    }
    __syncwarp();
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     to + lane * kRowBytes),
                 "l"(pool + uint64_t{mine} * kRowBytes), "n"(kRowBytes), "r"(barrier)
                 : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < kStageRows / 2; ++i) {
      const uint32_t row = 2 * i + lane / 16;
      const char* from = pool + uint64_t{__shfl_sync(0xffffffffu, mine, row)} * kRowBytes + lane % 16 * 16;  // [16] bytes
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + row * kRowBytes + lane % 16 * 16), "l"(from)
                   : "memory");
    }
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
  }
}

template <Way kWay>
__global__ void fetch_rows(const char* pool, uint32_t row_mask, int steps, int stages) {  // pool [row_mask + 1, 256] bytes
  extern __shared__ __align__(128) char memory[];
  __shared__ uint64_t barriers[kMaxWarps][kMaxStages];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t ring = shared_address(memory + warp * stages * kStageBytes), full = shared_address(barriers[warp]);
  if (lane < stages) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(full + lane * 8), "r"(kWay == Way::bulk ? 1 : 32) : "memory");
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncwarp();
  const uint32_t seed = (blockIdx.x * (blockDim.x / 32) + warp) * steps * kStageRows;
  const auto start = [&](int step, int stage) {
    fetch<kWay>(pool, row_mask, seed + step * kStageRows, ring + stage * kStageBytes, full + stage * 8);
  };
  for (int step = 0; step < stages && step < steps; ++step) start(step, step);
  int stage = 0;
  uint32_t parity = 0;
  for (int step = 0; step < steps; ++step) {
    wait_at(full + stage * 8, parity);
    if (step + stages < steps) start(step + stages, stage);
    if (++stage == stages) stage = 0, parity ^= 1u;
  }
}

template <Way kWay>
void time_rows(const char* pool, uint32_t row_mask, int multiprocessors, int blocks, int warps,
               int stages) {  // pool as above
  const int shared = warps * stages * kStageBytes;
  if (shared * blocks > 226 * 1024) return;
  OK(cudaFuncSetAttribute(fetch_rows<kWay>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  Timer timer;
  const auto median_us = [&](int steps) {
    const std::vector<float> times = timer.run(nullptr, 7, [&] {
      fetch_rows<kWay><<<multiprocessors * blocks, warps * 32, shared>>>(pool, row_mask, steps, stages);
    });
    return times[times.size() / 2];
  };
  const int steps = 4096 / blocks / warps;  // twice as many less as many: without the start and the end
  const double us = median_us(2 * steps) - median_us(steps);
  const double bytes = double{kStageRows * kRowBytes} * steps * blocks * warps * multiprocessors;
  std::printf("%-8s blocks %d warps %d stages %2d, %3d KB: %.2f TB/s\n", kWay == Way::bulk ? "bulk" : "cp.async", blocks,
              warps, stages, blocks * warps * stages * kStageRows * kRowBytes / 1024, bytes / us * 1e-6);
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  OK(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s\n", properties.name);
  const size_t bytes = size_t{16} << 30;
  char* pool = nullptr;
  OK(cudaMalloc(&pool, bytes));
  OK(cudaMemset(pool, 1, bytes));
  const auto mask = static_cast<uint32_t>(bytes / kRowBytes - 1);
  const auto all = [&](auto&& time) {
    for (int stages : {16, 24}) time(1, 1, stages);
    for (int stages : {2, 4, 8, 12}) time(2, 1, stages);
    for (int stages : {2, 4, 6}) time(2, 2, stages);
  };
  all([&](int b, int w, int s) { time_rows<Way::bulk>(pool, mask, properties.multiProcessorCount, b, w, s); });
  all([&](int b, int w, int s) { time_rows<Way::async>(pool, mask, properties.multiProcessorCount, b, w, s); });
  OK(cudaFree(pool));
  return 0;
}
