// The query state of selectors whose score is a sum of table entries, one for each 4-bit code of a token: product codes of 4 bits, channel
// codes. Steps and offsets of the queries, then their tables.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/select/nibble_scores.h"
#include "rarefy/select/selector.h"

namespace rarefy {

class NibbleState {
 public:
  static size_t bytes(int32_t num_queries, int32_t num_lanes) {
    return sizeof(Head) + static_cast<size_t>(num_queries * cpu::nibble_table_bytes(num_lanes));
  }
  static void set(std::byte* state,  // state [bytes] bytes; 64-byte aligned, as everywhere here
                  int32_t query,
                  const float* values,  // values [num_groups, 16] f32
                  int32_t num_groups, int32_t num_lanes) {
    auto& head = *reinterpret_cast<Head*>(state);
    auto* tables = reinterpret_cast<uint8_t*>(state + sizeof(Head));  // [num_queries, 2, num_lanes, 16] u8
    head.steps[query] = cpu::make_nibble_table(values, num_groups, num_lanes,
                                               tables + query * cpu::nibble_table_bytes(num_lanes), head.offsets[query]);
  }
  static float step(const std::byte* state, int32_t query) {  // state [bytes] bytes
    return reinterpret_cast<const Head*>(state)->steps[query];
  }
  static void score(const std::byte* state,  // state [bytes] bytes
                    int32_t num_queries, int32_t num_lanes, const ScoreBlocks& blocks,
                    float* scores,  // scores [num_queries, score_stride] f32
                    int64_t score_stride) {
    const auto& head = *reinterpret_cast<const Head*>(state);
    cpu::NibbleTables tables;
    tables.num_queries = num_queries;
    tables.num_lanes = num_lanes;
    tables.tables = reinterpret_cast<const uint8_t*>(state + sizeof(Head));
    tables.steps = head.steps;
    tables.has_scales = false;
    tables.offsets = head.offsets;
    cpu::nibble_scores(tables, {blocks.entries, blocks.num_blocks, blocks.num_ahead}, scores, score_stride);
  }

 private:
  struct Head {
    float steps[kMaxGroup];    // [num_queries] f32; of the tables
    float offsets[kMaxGroup];  // [num_queries] f32
  };
  static_assert(sizeof(Head) % 64 == 0);
};

}  // namespace rarefy
