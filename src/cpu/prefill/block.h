// The vector part of prefill: one block of queries of one KV head against all the keys they see. block.cc compiles it for
// every Highway target; prefill.cc splits the work and calls it through this table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "rarefy/attention/prefill.h"

namespace rarefy::cpu {

// 192 rows of scores against 64 keys: converting a key tile to f32 is 4 % of the work on it, and queries, scores and sums of a
// block (144 KiB at head_dim 64) stay in the L2 cache.
inline constexpr int32_t kPrefillRows = 192;
inline constexpr int32_t kKeyTile = 64;

struct PrefillBlock {
  const PrefillProblem* problem = nullptr;
  const PrefillArgs* args = nullptr;
  int32_t kv_head = 0;
  int32_t first_query = 0, num_queries = 0;  // num_queries * group <= kPrefillRows
  float* scratch = nullptr;                  // [prefill_scratch_floats(head_dim)] f32; 64-byte aligned
};

int64_t prefill_scratch_floats(int32_t head_dim);

struct PrefillFunctions {
  const char* name;  // "cpu_avx3"
  int64_t target;    // Highway's bit
  void (*run_block)(const PrefillBlock& block);
};

// Compiled targets, best first.
std::span<const PrefillFunctions> prefill_functions();

}  // namespace rarefy::cpu
