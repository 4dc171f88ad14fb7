// Deals the blocks of a sequence to its lists by their lengths, where one is much longer than the others: a dense list among sparse ones has most of
// the blocks then. Every block computes the same, so nothing is communicated; results do not depend on it, as a list's cut depends on its
// length alone.
#pragma once

#include "cuda/decode/params.h"

namespace rarefy::cuda {

inline constexpr uint32_t kAllLanes = 0xffffffffu;

// A block's list, its number among that list's blocks and how many those are. A number beyond them: there is nothing left to do.
struct Dealt {
  int list, block, blocks;
};

// Whether the longest list is so much longer than the mean. Lists of one to ten times the shortest, 1.8 times the mean, were no faster with
// blocks dealt (100x, batch 4 and 16: 13.8 and 36.0 us, without 13.6 and 34.6). For a warp; lane l has the tokens of list l.
__device__ __forceinline__ bool is_skewed(int num_tokens, int num_lists) {
  constexpr float kTimes = 2.5f;
  const int steps = static_cast<int>(threadIdx.x % 32) < num_lists ? num_tokens / kStepTokens : 0;
  return static_cast<float>(__reduce_max_sync(kAllLanes, steps)) * static_cast<float>(num_lists) >
         kTimes * static_cast<float>(__reduce_add_sync(kAllLanes, steps));
}

// For a warp. Lane l has the cut of list l; `own` is the block's number among the num_lists * per_list of the sequence, per_list for each list at
// first. Tried are shares that are so many times those of a perfect deal.
__device__ __noinline__ inline Dealt deal_blocks(Cut cut, int num_lists, int per_list, int own) {
  constexpr float kTimes[] = {1.0f, 1.19f, 1.41f, 1.68f, 2.0f, 2.38f, 2.83f, 4.0f};
  constexpr int kTries = sizeof(kTimes) / sizeof(kTimes[0]);
  const int lane = threadIdx.x % 32, available = num_lists * per_list;
  const bool has_list = lane < num_lists;
  const float perfect = __fdividef(static_cast<float>(__reduce_add_sync(kAllLanes, has_list ? cut.steps() : 0)),
                                   static_cast<float>(kMaxBlockWarps * available));
  int blocks = has_list ? per_list : 0;
#pragma unroll
  for (int i = kTries - 1; i >= 0; --i) {
    const int wanted = has_list ? blocks_within(cut, static_cast<int>(perfect * kTimes[i]) + 1) : 0;
    if (__reduce_add_sync(kAllLanes, wanted) <= available) blocks = wanted;
  }
  int end = blocks;
#pragma unroll 1
  for (int lanes = 1; lanes < num_lists; lanes *= 2) {
    const int before = __shfl_up_sync(kAllLanes, end, lanes);
    if (lane >= lanes) end += before;
  }
  const uint32_t later = __ballot_sync(kAllLanes, own < end);
  if (later == 0) return {0, 1, 1};
  const int list = __ffs(static_cast<int>(later)) - 1;
  return {list, own - __shfl_sync(kAllLanes, end - blocks, list), __shfl_sync(kAllLanes, blocks, list)};
}

}  // namespace rarefy::cuda
