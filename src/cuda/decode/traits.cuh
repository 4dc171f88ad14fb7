// Compile-time facts of one decode kernel: how rows lie in registers. README.md of this folder draws the layout.
#pragma once

#include <cstdint>

namespace rarefy::cuda {

// kKvBytes: bytes of a stored element (2, or 1 for e4m3). kBf16: matrix products in bf16, else f16; also the type of q.
// kColumnTiles: matrix tiles of 8 slots that one block holds. kCertificates: the upper half of the slots holds sums under the weights
// of the variance, the lower half the columns (query heads and queries) themselves.
template <int kHeadDim_, int kKvBytes_, bool kBf16_, int kColumnTiles_, bool kCertificates_>
struct DecodeTraits {
  static constexpr int kHeadDim = kHeadDim_, kKvBytes = kKvBytes_, kColumnTiles = kColumnTiles_;
  static constexpr bool kBf16 = kBf16_, kCertificates = kCertificates_;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kSlots = 8 * kColumnTiles, kColumns = kCertificates ? kSlots / 2 : kSlots;
  static constexpr int kRowBytes = kHeadDim * kKvBytes;
  // Keys: lane (g, c) loads 16 bytes of rows g and g + 8 out of every 64 bytes, which are one or two steps of 16 dims.
  static constexpr int kKeyLoads = kRowBytes / 64, kKeySteps = 4 / kKvBytes;  // of 16 dims each
  // Values: lane (g, c) loads kValueBytes of rows 2c, 2c + 1, 2c + 8, 2c + 9 out of every 8 * kValueBytes bytes.
  static constexpr int kValueBytes = kRowBytes >= 128 ? 16 : 8;
  static constexpr int kValueLoads = kRowBytes / (8 * kValueBytes), kValueElements = kValueBytes / kKvBytes;
  // Rows in flight: 16 tokens of keys and values per tile; short rows take two tiles to keep 8 KB in flight per warp.
  static constexpr int kTiles = kRowBytes <= 128 ? 2 : 1;
  static constexpr int kStepTokens = 16 * kTiles;
  static constexpr int kDimTiles = kHeadDim / 16;
  // Registers: 8 KB of rows in flight per warp, sums, addresses: 168 allow three blocks of four warps.
  static constexpr int kBlocksPerMultiprocessor = kColumnTiles == 1 && kHeadDim <= 128 ? 3 : 2;
  static constexpr int kSegment = 512;  // tokens whose row offsets are looked up at once
  // f16 weights are scaled so that those 2^-24 of the largest keep 11 bits.
  // log2 of how far a weight may exceed 1 before the running maximum follows: squared and scaled weights must stay finite.
  static constexpr float kSlackBits = kBf16 ? 8.0f : 1.0f;
  static constexpr float kWeightScale = kBf16 ? 1.0f : 4096.0f;
};

}  // namespace rarefy::cuda
