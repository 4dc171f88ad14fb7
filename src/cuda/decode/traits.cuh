// Compile-time facts of one decode kernel: warps, and how rows lie in shared memory.
#pragma once

#include <cstdint>

#include "cuda/decode/params.h"

namespace rarefy::cuda {

// kKvBytes: bytes of a stored element (2, or 1 for e4m3). kBf16: matrix products in bf16, else f16; also the type of q.
// kColumnTiles: matrix tiles of 8 slots that one block holds. kCertificates: the upper half of the slots holds sums under the weights
// of the variance, the lower half the columns (query heads and queries) themselves.
template <int kHeadDim_, int kKvBytes_, bool kBf16_, int kColumnTiles_, bool kCertificates_>
struct DecodeTraits {
  static constexpr int kHeadDim = kHeadDim_, kKvBytes = kKvBytes_, kColumnTiles = kColumnTiles_;
  static constexpr bool kBf16 = kBf16_, kCertificates = kCertificates_;
  static constexpr int kSlots = 8 * kColumnTiles, kColumns = kCertificates ? kSlots / 2 : kSlots;
  static constexpr int kDimTiles = kHeadDim / 16;
  static constexpr int kRowBytes = kHeadDim * kKvBytes;
  static constexpr int kQueryStride = kHeadDim * 2 + 16;
  static constexpr int kBlocks = blocks_per_multiprocessor(kHeadDim, kSlots);
  static constexpr int kMaxWarps = kBlocks == 2 ? kMaxBlockWarps : kBlockWarps;  // of a block
  static constexpr int kMaxThreads = 32 * kMaxWarps, kMinBlocks = kBlocks * kBlockWarps / kMaxWarps;
  // 16 KB of rows for each of 8 warps on a multiprocessor, or 8 KB for each of 16: so much may be under way at any time. A stage more
  // where there are few blocks cost 4 % (50x, batch 1): its ids are waited for before the first step is attended to.
  static constexpr int kStages = (32 << 10) / kBlocks / (2 * kStepTokens * kRowBytes);
  // Where a stage is all there is room for, the next step's keys are copied while this one's values are added up.
  static constexpr bool kKeysApart = kStages == 1;
  // Whether values are read out of shared memory while scores are on their way, where registers hold them.
  static constexpr bool kValuesEarly = kKvBytes == 2 && kHeadDim == 128 && kColumnTiles == 1 && !kCertificates;
  // Whether registers hold a pair's first leaf beside the second. Else it waits where parts are; in the workspace that costs 3 to 10 % where
  // warps have whole pairs, but less than registers that spill in every step.
  static constexpr bool kHoldsPair = kDimTiles * kColumnTiles <= 8;
  // log2 of how far a weight may exceed 1 before the running maximum follows: squared and scaled weights must stay finite.
  static constexpr float kSlackBits = kBf16 ? 8.0f : 1.0f;
  // f16 weights are scaled so that those 2^-24 of the largest keep 11 bits.
  static constexpr float kWeightScale = kBf16 ? 1.0f : 4096.0f;
};

}  // namespace rarefy::cuda
