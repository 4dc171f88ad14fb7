// What the decode kernel is launched with, and how a list is cut into splits: one rule for host and device.
//
// A list of n tokens (or all kv_len tokens) is cut into splits of split_tokens(n) tokens each. The cut depends on n alone, never
// on the batch or the device, so a request gives the same bits in any company. Blocks attend to one split each; whichever
// block of a list is last merges the parts, in ascending order.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define RAREFY_HOST_DEVICE __host__ __device__
#else
#define RAREFY_HOST_DEVICE
#endif

namespace rarefy::cuda {

inline constexpr int32_t kMaxSplits = 48, kFewSplits = 12;
inline constexpr int32_t kSmallSplit = 64;  // tokens: a step of 16 for each of four warps

RAREFY_HOST_DEVICE constexpr int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Into how many splits a list of n tokens is cut at most. 132 multiprocessors hold 396 blocks: 48 splits of 8 lists are about as many,
// or 12 splits of 32 lists; more than 12 splits of a short list spend more on starting and merging than they save on rows.
RAREFY_HOST_DEVICE constexpr int32_t wanted_splits(int32_t n) {
  return n <= 4096 ? kFewSplits : n <= 8192 ? 2 * kFewSplits : kMaxSplits;
}
// Tokens in every split of a list of n > 0 tokens but the last.
RAREFY_HOST_DEVICE constexpr int32_t split_tokens(int32_t n) {
  return n <= kFewSplits * kSmallSplit ? kSmallSplit : ceil_div(n, wanted_splits(n) * kSmallSplit) * kSmallSplit;
}
RAREFY_HOST_DEVICE constexpr int32_t num_splits(int32_t n) { return n <= 0 ? 1 : ceil_div(n, split_tokens(n)); }
// The most splits that any list of at most n tokens has.
RAREFY_HOST_DEVICE constexpr int32_t max_splits(int32_t n) {
  return n <= kFewSplits * kSmallSplit ? num_splits(n) : wanted_splits(n);
}

// First bytes of a workspace: what check() reports. Zero when all is well.
inline constexpr int32_t kErrorToken = 1;   // token id outside the sequence
inline constexpr int32_t kErrorCount = 2;   // count neither -1 nor 0 to max_selected
inline constexpr int32_t kErrorPage = 3;    // physical page outside the pool
inline constexpr int32_t kErrorLength = 4;  // kv_len beyond the page table or the plan's max_kv_len
struct ErrorRecord {
  int32_t kind;                      // 0 = none
  int32_t sequence, list, position;  // position in the list, or the logical page
  int32_t value, limit;
};

struct DecodeParams {
  const void* q;                     // [batch, num_queries, num_q_heads, head_dim] f16 or bf16
  const char* keys;                  // [num_pages, page_size, num_kv_heads, head_dim] kv_dtype; rows by the strides below
  const char* values;                // the same
  uint32_t page_units, token_units;  // strides in units of 16 bytes; a row's offset fits 32 bits
  int64_t head_bytes;
  const int32_t* page_table;  // [batch, max_pages] i32
  const int32_t* kv_lens;     // [batch] i32
  int32_t num_pages, max_pages, page_shift;
  int32_t max_kv_len;         // longest that page table and workspace have room for
  const float* key_scales;    // [num_kv_heads] f32; nullable
  const float* value_scales;  // [num_kv_heads] f32; nullable
  const int32_t* token_ids;   // [batch, num_lists, max_selected] i32
  const int32_t* counts;      // [batch, num_lists] i32; null = every list dense
  const float* log_weight;    // [batch, num_lists, max_selected] f32; nullable
  int32_t max_selected;
  const float* sink_logits;  // [num_q_heads] f32; nullable
  float scale, soft_cap, inverse_soft_cap;
  int32_t num_q_heads, num_kv_heads, num_queries;
  int32_t num_lists, heads_per_list, lists_per_kv_head;
  int32_t columns_per_block, num_column_blocks;  // a column is a (query, query head) pair of a list
  void* out;                                     // [batch, num_queries, num_q_heads, head_dim] out_dtype
  int32_t out_dtype;                             // a DType
  float* lse;                                    // [batch, num_queries, num_q_heads] f32; nullable
  float* rel_std;                                // [batch, num_queries, num_q_heads] f32; nullable
  float* out_rel_std;                            // [batch, num_queries, num_q_heads] f32; nullable
  ErrorRecord* error;                            // not a tensor
  int32_t* counters;                             // [batch, num_lists, num_column_blocks] i32; zero between runs
  float* part_stats;  // [batch, num_lists, num_column_blocks, split_capacity, slots, 4] f32; maximum, sum, norms, unused
  float* part_sums;   // [batch, num_lists, num_column_blocks, split_capacity, slots, head_dim] f32
  int32_t full_split_tokens;     // split_tokens(max_selected), and two more numbers for prefetching:
  int32_t prefetch_table_lines;  // lines of the page table for each block of a sequence
  int32_t prefetch_sequences;    // about as many sequences are worked on at a time
  int32_t num_stages;            // of each warp's ring
  int32_t split_capacity;        // splits that the workspace has room for, per list
};

}  // namespace rarefy::cuda
