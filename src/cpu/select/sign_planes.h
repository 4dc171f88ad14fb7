// Scores of sign codes, 64 tokens at a time, by table lookup.
//
// An entry describes 64 tokens: num_planes x 64 bytes of signs, then 64 scales (e4m4). A plane holds the signs of eight
// consecutive dimensions, one byte per token and bit j for dimension 8 * plane + j (set: +1). So one vector holds one plane of
// many tokens, and a byte is an index into a table of what its signs contribute. The score of a token is
//
//   scale_t * step * sum over dimensions of +-round(q / step)
//
// where rounding is done for groups of 4, 2 and 2 dimensions of a plane: `round` is of the group's sum under each of its
// patterns. Hence any lookup made of whole groups gives the same integer: 16 entries for half a byte (AVX2, NEON), 64 entries
// for six bits (AVX-512 VBMI, which looks up 64 bytes at once; the two bits left over of three planes make another index). The
// same sums on every instruction set. Rounding moves a score by at most scale_t * step * 1.5 * num_planes, and by scale_t *
// step * sqrt(num_planes) / 2 as a standard deviation. The step is as small as sums over 64 dimensions in one byte allow.
//
// The place of a token within a plane (plane_position) is such that widening sums to f32 leaves tokens in order.
//
// Thread-safe; nothing is kept.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace rarefy::cpu {

inline constexpr int32_t kPlaneTokens = 64;
inline constexpr int32_t kPlaneDims = 8;
inline constexpr int32_t kMaxPlanes = 128;  // head_dim 1024

// A byte with 4 bits of exponent and 4 of mantissa, 2^(E - 8) (1 + m / 16): values from 2^-8 to 248 within 3.2 %, smaller ones
// become 2^-8. Next to the 60 % by which one sign per dimension misses a key, the rounding of a scale does not show, and it
// saves a byte per token.
inline constexpr int32_t kE4m4Bias = 8;
inline float e4m4_to_float(uint8_t code) {
  return std::bit_cast<float>((uint32_t{code} << 19) + (uint32_t{127 - kE4m4Bias} << 23));
}
inline uint8_t float_to_e4m4(float value) {  // value >= 0; rounds to nearest
  const int64_t bits = std::bit_cast<int32_t>(value) - (int64_t{127 - kE4m4Bias} << 23);
  return static_cast<uint8_t>(std::clamp<int64_t>((bits + (1 << 18)) >> 19, 0, 255));
}

inline int32_t num_sign_planes(int32_t head_dim) { return (head_dim + kPlaneDims - 1) / kPlaneDims; }
// Token 16 k + 4 l + m lies in the 16 bytes l, there in half k / 2, as number 2 m + k % 2.
inline int32_t plane_position(int32_t token) {
  const int32_t k = token / 16, l = token % 16 / 4, m = token % 4;
  return 16 * l + 8 * (k / 2) + 2 * m + k % 2;
}
inline int64_t plane_block_bytes(int32_t num_planes) { return (int64_t{num_planes} + 1) * kPlaneTokens; }
inline int64_t plane_code_offset(int32_t plane, int32_t token) {
  return int64_t{plane} * kPlaneTokens + plane_position(token);
}
inline int64_t plane_scale_offset(int32_t num_planes, int32_t token) { return int64_t{num_planes} * kPlaneTokens + token; }

// Room for the tables of one query.
inline int64_t plane_table_bytes(int32_t num_planes) { return (int64_t{num_planes} + (num_planes + 1) / 2) * kPlaneTokens; }

// Fills the tables of one query, in the layout of the running instruction set, and returns the step. A query that is zero or
// not finite gets the step 0.
float make_plane_table(const float* q,  // [head_dim] f32
                       int32_t head_dim,
                       int8_t* table);  // [plane_table_bytes] i8; 64-byte aligned

struct PlaneQueries {
  int32_t num_queries = 0;
  int32_t num_planes = 0;
  const int8_t* tables = nullptr;  // [num_queries, plane_table_bytes] i8; 64-byte aligned
  const float* steps = nullptr;    // [num_queries] f32
};

struct PlaneBlocks {
  const std::byte* const* entries = nullptr;  // [num_blocks] pointers to [plane_block_bytes] bytes
  int32_t num_blocks = 0;
  const float* offsets = nullptr;  // [num_queries, offset_stride] f32; added to the scores of a block
  int64_t offset_stride = 0;
  // Fetched into the L2 cache meanwhile, one for each block.
  const std::byte* const* ahead = nullptr;  // [num_ahead] pointers to [ahead_bytes] bytes
  int32_t num_ahead = 0;                    // at most num_blocks
  int64_t ahead_bytes = 0;
};

void plane_scores(const PlaneQueries& queries, const PlaneBlocks& blocks,
                  float* scores,  // [num_queries, score_stride] f32; 64 per block
                  int64_t score_stride);

// The largest of the queries' scores for every token, NaN left out, moved into +-kLargestScore.
void largest_plane_scores(const PlaneQueries& queries, const PlaneBlocks& blocks,
                          float* largest);  // [num_blocks, 64] f32

}  // namespace rarefy::cpu
