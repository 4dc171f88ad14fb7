// Which work a block has, and where the rows of its tokens lie: counts, ids and page table become row offsets and log weights in
// shared memory. Everything that comes from device memory is checked here: what does not fit is left out and recorded.
#pragma once

#include <cmath>

#include "cuda/decode/params.h"
#include "cuda/decode/traits.cuh"

namespace rarefy::cuda {

inline constexpr uint32_t kNoRow = 0xffffffffu;

// Keeps the first error of a run; later ones are dropped.
__device__ inline void record_error(ErrorRecord* error, int32_t kind, int32_t sequence, int32_t list, int32_t position,
                                    int32_t value, int32_t limit) {
  if (atomicCAS(&error->kind, 0, kind) != 0) return;
  error->sequence = sequence, error->list = list, error->position = position;
  error->value = value, error->limit = limit;
}

// One block's list, columns and splits.
template <typename T>
struct Work {
  int sequence, list, column_block, first_column, num_columns;
  int kv_len, num_tokens, num_splits, split_tokens;
  bool dense;
  int64_t list_row;    // of counts; times max_selected: of ids and weights
  int64_t result_row;  // of counters and partial results

  __device__ explicit Work(const DecodeParams& p) {
    sequence = blockIdx.z;
    list = blockIdx.y / p.num_column_blocks;
    column_block = blockIdx.y % p.num_column_blocks;
    first_column = column_block * p.columns_per_block;
    num_columns = min(p.columns_per_block, p.heads_per_list * p.num_queries - first_column);
    list_row = static_cast<int64_t>(sequence) * p.num_lists + list;
    result_row = list_row * p.num_column_blocks + column_block;
    const int given_len = p.kv_lens[sequence];
    int count = p.counts != nullptr ? p.counts[list_row] : -1;
    kv_len = max(0, min(given_len, p.max_kv_len));
    if (kv_len != given_len && threadIdx.x == 0) {
      record_error(p.error, kErrorLength, sequence, list, 0, given_len, p.max_kv_len);
    }
    if (count < -1 || count > p.max_selected) {
      if (threadIdx.x == 0) record_error(p.error, kErrorCount, sequence, list, 0, count, p.max_selected);
      count = count < 0 ? 0 : p.max_selected;
    }
    dense = count == -1;
    num_tokens = dense ? kv_len : count;
    split_tokens = cuda::split_tokens(num_tokens);
    num_splits = cuda::num_splits(num_tokens);
  }

  // The column that a slot serves (its variance sum, in the upper half, when there are certificates); -1 for none.
  __device__ int column_of_slot(const DecodeParams& p, int slot) const {
    const int column = p.certificates && slot >= T::kSlots / 2 ? slot - T::kSlots / 2 : slot;
    return column < num_columns ? column : -1;
  }
  __device__ int query_of(const DecodeParams& p, int column) const {
    return column < 0 ? 0 : (first_column + column) / p.heads_per_list;
  }
  __device__ int head_of(const DecodeParams& p, int column) const {
    return list * p.heads_per_list + (first_column + column) % p.heads_per_list;
  }
  // Row of q, out, lse: (sequence, query, query head).
  __device__ int64_t output_row(const DecodeParams& p, int column) const {
    return (static_cast<int64_t>(sequence) * p.num_queries + query_of(p, column)) * p.num_q_heads + head_of(p, column);
  }
};

template <typename T>
struct Stage {
  uint32_t row[T::kSegment];       // offset of the row in units of 16 bytes, within its KV head; kNoRow = none
  float log2_weight[T::kSegment];  // log weight in log2 units; -inf where there is no row
  float missing[T::kSegment];      // 1 - inclusion probability; with certificates
  int token[T::kSegment];          // token id; with several queries
};

template <typename T>
__device__ __forceinline__ void fill_stage(const DecodeParams& p, const Work<T>& work, int segment, int count,
                                           Stage<T>& stage) {
  constexpr float kLog2E = 1.4426950408889634f;
  constexpr int kEach = T::kSegment / T::kThreads;
  const int padded = (count + T::kStepTokens - 1) / T::kStepTokens * T::kStepTokens;
  const int64_t list_start = work.list_row * p.max_selected + segment;
  const int32_t* table = p.page_table + static_cast<int64_t>(work.sequence) * p.max_pages;  // [max_pages] i32
  int token[kEach], page[kEach];
  float log_weight[kEach];
  // Three passes, so that each thread's loads of one kind are under way together.
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int i = threadIdx.x + k * T::kThreads;
    token[k] = segment + i;
    log_weight[k] = 0.0f;
    if (work.dense || i >= count) continue;
    token[k] = p.token_ids[list_start + i];
    if (p.log_weight != nullptr) log_weight[k] = p.log_weight[list_start + i];
  }
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int i = threadIdx.x + k * T::kThreads;
    page[k] = -1;
    if (i >= count) continue;
    if (static_cast<uint32_t>(token[k]) < static_cast<uint32_t>(work.kv_len)) {
      page[k] = table[token[k] >> p.page_shift];
      if (static_cast<uint32_t>(page[k]) >= static_cast<uint32_t>(p.num_pages)) {
        record_error(p.error, kErrorPage, work.sequence, work.list, token[k] >> p.page_shift, page[k], p.num_pages);
        page[k] = -1;
      }
    } else {
      record_error(p.error, kErrorToken, work.sequence, work.list, segment + i, token[k], work.kv_len);
    }
  }
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int i = threadIdx.x + k * T::kThreads;
    if (i >= padded) break;
    const bool valid = page[k] >= 0;
    const uint32_t within = static_cast<uint32_t>(token[k]) & ((1u << p.page_shift) - 1u);
    stage.row[i] = valid ? static_cast<uint32_t>(page[k]) * p.page_units + within * p.token_units : kNoRow;
    stage.log2_weight[i] = valid ? log_weight[k] * kLog2E : -INFINITY;
    if (p.certificates) stage.missing[i] = valid ? -expm1f(-log_weight[k]) : 0.0f;
    if (p.num_queries > 1) stage.token[i] = token[k];
  }
}

// Queries of the block's slots, padded rows; zeros for slots that serve nothing.
template <typename T>
__device__ __forceinline__ void load_queries(const DecodeParams& p, const Work<T>& work,
                                             uint4* q) {  // q [kSlots, head_dim] 16 bits
  constexpr int kRowLoads = T::kHeadDim / 8;
  for (int i = threadIdx.x; i < T::kSlots * kRowLoads; i += T::kThreads) {
    const int slot = i / kRowLoads, part = i % kRowLoads;
    const int column = work.column_of_slot(p, slot);
    uint4 value = {0, 0, 0, 0};
    if (column >= 0) value = static_cast<const uint4*>(p.q)[work.output_row(p, column) * kRowLoads + part];
    q[slot * (kRowLoads + 1) + part] = value;
  }
}

}  // namespace rarefy::cuda
