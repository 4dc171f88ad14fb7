// Scores of 4-bit codes by table lookup: one byte shuffle looks up 16 codes per 16 bytes of vector.
//
// A block is 16 tokens. Its entry holds num_lanes x 16 bytes of codes, then 16 scales (f16). Lane k holds the codes of
// groups 2k (low nibble) and 2k + 1 (high nibble), one byte per token; four lanes are interleaved, so that the four bytes of a
// token are neighbours and one instruction can add them up (nibble_code_offset). A group is a few dimensions with one of 16
// patterns. For every query a table gives each pattern's contribution, rounded to 0 .. 62, so that four of them add up in a
// byte. The score of a token is
//
//   scale_t * (step * (sum over groups of table[group][code] - offset))
//
// Entries without scales (NibbleTables::has_scales) have scale_t = 1, and a number per query is added to every score.
//
// The sum is an integer, hence the same bits on every instruction set. Rounding the table moves a score by at most
// scale_t * step * num_groups / 2, and by scale_t * step * sqrt(num_groups / 12) as a standard deviation.
//
// Thread-safe; nothing is kept.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rarefy::cpu {

inline constexpr int32_t kNibbleBlockTokens = 16;
inline constexpr int32_t kNibblePatterns = 16;
inline constexpr int32_t kNibbleLaneBytes = 16;
inline constexpr int32_t kNibbleLaneMultiple = 4;  // num_lanes is a multiple: four lanes are interleaved
inline constexpr int32_t kNibbleTableMiddle = 31;  // table entries are 31 + (-31 .. 31)

struct NibbleTables {
  int32_t num_queries = 0;
  int32_t num_lanes = 0;  // a multiple of kNibbleLaneMultiple
  // `tables` [num_queries, 2, num_lanes, 16] u8; low nibbles' tables, then high ones'; 64-byte aligned
  const uint8_t* tables = nullptr;
  const float* steps = nullptr;  // [num_queries] f32
  bool has_scales = true;
  const float* offsets = nullptr;  // [num_queries] f32; added to the scores; only without scales
};

// Where the codes of a token and lane lie within an entry.
inline int64_t nibble_code_offset(int32_t lane, int32_t token) {
  return int64_t{lane / kNibbleLaneMultiple} * kNibbleLaneMultiple * kNibbleLaneBytes + token * kNibbleLaneMultiple +
         lane % kNibbleLaneMultiple;
}

inline int64_t nibble_table_bytes(int32_t num_lanes) { return int64_t{2} * num_lanes * kNibblePatterns; }
inline int64_t nibble_block_bytes(int32_t num_lanes, bool has_scales = true) {
  return int64_t{num_lanes} * kNibbleLaneBytes + (has_scales ? 2 * kNibbleBlockTokens : 0);
}
inline int32_t nibble_lanes(int32_t num_groups) {
  return (num_groups + 2 * kNibbleLaneMultiple - 1) / (2 * kNibbleLaneMultiple) * kNibbleLaneMultiple;
}

// Table of one query: the contribution of pattern p in group g is sum_j coefficients[j][p] * q[g * dims_per_group + j],
// rounded to a multiple of the returned step. Groups past the last dimension contribute nothing.
float make_nibble_table(const float* q,    // [head_dim] f32
                        int32_t head_dim,  // a multiple of dims_per_group
                        int32_t dims_per_group,
                        const float* coefficients,  // [dims_per_group, 16] f32
                        int32_t num_lanes,
                        uint8_t* table);  // [2, num_lanes, 16] u8

// Table of one query from any contributions: each group's middle is taken off, added up in `offset`, and the rest rounded to a
// multiple of the returned step. Values that are not finite give zeros.
float make_nibble_table(const float* values,  // [num_groups, 16] f32
                        int32_t num_groups, int32_t num_lanes,
                        uint8_t* table,  // [2, num_lanes, 16] u8
                        float& offset);

struct NibbleBlocks {
  const std::byte* const* entries = nullptr;  // [num_blocks + num_ahead] pointers to [nibble_block_bytes] bytes
  int32_t num_blocks = 0;
  int32_t num_ahead = 0;  // more entries, which may be prefetched
};

void nibble_scores(const NibbleTables& queries, const NibbleBlocks& blocks,
                   float* scores,  // [num_queries, score_stride] f32; 16 per block
                   int64_t score_stride);

}  // namespace rarefy::cpu
