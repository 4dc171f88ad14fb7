// Deals the blocks of a sequence to its lists by their lengths, where the longest has much more than its share: a dense list among sparse ones gets
// most of the blocks. Every block computes the same, so nothing is communicated; results do not depend on it, as a list's cut depends on its
// length alone.
#pragma once

#include "cuda/decode/params.h"

namespace rarefy::cuda {

inline constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ __forceinline__ int block_warps() { return static_cast<int>(blockDim.x) / 32; }

// A block's list, its number among that list's blocks and how many those are. A number beyond them: there is nothing left to do.
struct Dealt {
  int list, block, blocks;
};

// Whether the longest list's warps have so many more steps than the mean that the others' blocks should take some: it costs 1 to 2 us. Lists of many
// blocks average out over the multiprocessors (lists of one to ten times the shortest, in two blocks 30.4 instead of 31.0 us, in four 30.9 instead
// of 30.1). For a warp; lane l has the tokens of list l, with per_list blocks.
__device__ __forceinline__ bool is_skewed(int num_tokens, int num_lists, int per_list) {
  constexpr float kTimes = 1.3f, kMoreSteps = 3.0f;  // than the mean; of a warp, for each block of a list
  const int steps = static_cast<int>(threadIdx.x % 32) < num_lists ? num_tokens / kStepTokens : 0;
  const auto blocks = static_cast<float>(per_list);
  const float longest = static_cast<float>(__reduce_max_sync(kAllLanes, steps)) * static_cast<float>(num_lists);
  const float sum = static_cast<float>(__reduce_add_sync(kAllLanes, steps));
  return longest > kTimes * sum &&
         longest - sum > kMoreSteps * blocks * static_cast<float>(num_lists * block_warps()) * blocks;
}

// For a warp. Lane l has the cut of list l; `own` is the block's number among the num_lists * per_list of the sequence, per_list for each list at
// first. The longest share of a warp is halved in between what it is and what it would be of a perfect deal.
__device__ __noinline__ inline Dealt deal_blocks(Cut cut, int num_lists, int per_list, int own) {
  constexpr int kTries = 5;
  const int lane = threadIdx.x % 32, available = num_lists * per_list;
  const bool has_list = lane < num_lists;
  const auto each = [](int steps, int blocks) {  // of their warps
    return quick_div(steps, block_warps() * blocks);
  };
  const int steps = has_list ? cut.steps : 0;
  int too_few = each(__reduce_add_sync(kAllLanes, steps), available);
  int enough = each(__reduce_max_sync(kAllLanes, steps), per_list) + 1;
  int blocks = has_list ? per_list : 0;
#pragma unroll 1
  for (int i = 0; i < kTries; ++i) {
    const int share = (too_few + enough + 1) / 2;
    const int wanted = has_list ? blocks_within(cut, share, block_warps()) : 0;
    if (__reduce_add_sync(kAllLanes, wanted) <= available) {
      blocks = wanted, enough = share;
    } else {
      too_few = share;
    }
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
