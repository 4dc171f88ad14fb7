// Which work a block has, and where the rows of its tokens lie: counts, ids and page table become row offsets and log weights in
// shared memory. Everything that comes from device memory is checked here: what does not fit is left out and recorded.
//
// These are the instructions that run while no row is under way, so they are few: no 64-bit divisions, none at all for one query.
#pragma once

#include <cmath>

#include "cuda/decode/params.h"
#include "cuda/decode/traits.cuh"
#include "cuda/device/ptx.cuh"

namespace rarefy::cuda {

inline constexpr uint32_t kNoRow = 0xffffffffu;

// Keeps the first error of a run; later ones are dropped.
__device__ inline void record_error(ErrorRecord* error, int32_t kind, int32_t sequence, int32_t list, int32_t position,
                                    int32_t value, int32_t limit) {
  if (atomicCAS(&error->kind, 0, kind) != 0) return;
  error->sequence = sequence, error->list = list, error->position = position;
  error->value = value, error->limit = limit;
}

// Which list and columns a block has: known before any memory is read.
struct Place {
  int sequence, list, column_block, first_column, num_columns;
  int list_row;  // of counts; times max_selected: of ids and weights

  Place() = default;
  __device__ explicit Place(const DecodeParams& p) {
    sequence = blockIdx.z;
    list = blockIdx.y;
    column_block = 0;
    if (p.num_column_blocks > 1) {
      list = blockIdx.y / p.num_column_blocks;
      column_block = blockIdx.y - list * p.num_column_blocks;
    }
    first_column = column_block * p.columns_per_block;
    num_columns = min(p.columns_per_block, p.heads_per_list * p.num_queries - first_column);
    list_row = sequence * p.num_lists + list;
  }
  __device__ int query_of(const DecodeParams& p, int column) const {
    return p.num_queries == 1 ? 0 : (first_column + column) / p.heads_per_list;
  }
  // Row of q, out, lse: (sequence, query, query head).
  __device__ int output_row(const DecodeParams& p, int column) const {
    const int query = query_of(p, column);
    return (sequence * p.num_queries + query) * p.num_q_heads + head_of(p, column, query);
  }
  __device__ int head_of(const DecodeParams& p, int column, int query) const {
    return list * p.heads_per_list + first_column + column - query * p.heads_per_list;
  }
};

// How long the list is and how it is cut.
struct Extent {
  int kv_len, num_tokens, num_splits, split_tokens;
  bool dense;

  Extent() = default;
  __device__ Extent(const DecodeParams& p, const Place& place) {
    const int given_len = p.kv_lens[place.sequence];
    int count = p.counts != nullptr ? p.counts[place.list_row] : -1;
    kv_len = max(0, min(given_len, p.max_kv_len));
    if (kv_len != given_len && threadIdx.x == 0) {
      record_error(p.error, kErrorLength, place.sequence, place.list, 0, given_len, p.max_kv_len);
    }
    if (count < -1 || count > p.max_selected) {
      if (threadIdx.x == 0) record_error(p.error, kErrorCount, place.sequence, place.list, 0, count, p.max_selected);
      count = count < 0 ? 0 : p.max_selected;
    }
    dense = count == -1;
    num_tokens = dense ? kv_len : count;
    split_tokens = cuda::split_tokens(num_tokens);
    num_splits =
        num_tokens <= split_tokens
            ? 1
            : static_cast<int>(static_cast<unsigned>(num_tokens + split_tokens - 1) / static_cast<unsigned>(split_tokens));
  }
};

struct Work {
  Place place;
  Extent extent;
  int kv_head;
};

// Brings into the L2 cache what the first loads will ask for one after the other: counts, ids, weights, page table. Nothing is read,
// so this may run before the kernels that write them have finished. Ids as if lists were full; the block also prefetches those of
// a block that will run about when it ends, p.prefetch_sequences further on.
__device__ __forceinline__ void prefetch_lists(const DecodeParams& p, const Place& place, int threads) {
  const int thread = threadIdx.x;
  if (thread == 0) prefetch_l2(p.kv_lens + place.sequence);
  if (thread == 1 && p.counts != nullptr) prefetch_l2(p.counts + place.list_row);
  if (thread < p.prefetch_table_lines) {  // each block takes a share of the sequence's page table
    const int entry = ((blockIdx.y * gridDim.x + blockIdx.x) * p.prefetch_table_lines + thread) * 32;
    if (entry < p.max_pages) prefetch_l2(p.page_table + static_cast<int64_t>(place.sequence) * p.max_pages + entry);
  }
  if (p.token_ids == nullptr) return;
  const int half = threads / 2, position = blockIdx.x * p.full_split_tokens + (thread % half) * 32;
  if (thread % half * 32 >= p.full_split_tokens || position >= p.max_selected) return;
  const int32_t* ids = p.token_ids;  // [batch, num_lists, max_selected] i32; weights have the same layout
  if (thread >= half) ids = reinterpret_cast<const int32_t*>(p.log_weight);
  if (ids == nullptr) return;
  prefetch_l2(ids + static_cast<int64_t>(place.list_row) * p.max_selected + position);
  if (place.sequence + p.prefetch_sequences >= static_cast<int>(gridDim.z)) return;
  prefetch_l2(ids + static_cast<int64_t>(place.list_row + p.prefetch_sequences * p.num_lists) * p.max_selected + position);
}

template <typename T>
struct alignas(16) Stage {
  uint32_t row[T::kSegment];                          // offset of the row in units of 16 bytes, within its KV head
  float log2_weight[T::kSegment];                     // log weight in log2 units; -inf for what fills the last step up
  int token[T::kSegment];                             // token id; with several queries
  float missing[T::kCertificates ? T::kSegment : 2];  // 1 - inclusion probability
};

__device__ inline void report(const DecodeParams& p, const Work& work, int position, int token, int page) {
  if (static_cast<uint32_t>(token) < static_cast<uint32_t>(work.extent.kv_len)) {
    record_error(p.error, kErrorPage, work.place.sequence, work.place.list, token >> p.page_shift, page, p.num_pages);
  } else {
    record_error(p.error, kErrorToken, work.place.sequence, work.place.list, position, token, work.extent.kv_len);
  }
}

// After a bad id or page: every row that is missing becomes that of some good token, whose weight of 0 keeps it out. False if there
// is no good token.
template <typename T>
__device__ __noinline__ bool replace_missing_rows(Stage<T>& stage, int padded) {
  __shared__ uint32_t good;
  if (threadIdx.x == 0) good = kNoRow;
  __syncthreads();
  for (int i = threadIdx.x; i < padded; i += T::kThreads) atomicMin(&good, stage.row[i]);
  __syncthreads();
  for (int i = threadIdx.x; i < padded; i += T::kThreads) {
    if (stage.row[i] == kNoRow) stage.row[i] = good;
  }
  __syncthreads();
  return good != kNoRow;
}

// Fills the stage with `count` tokens from position `segment` of the list, and up to a whole step with copies of the last one under
// weight 0. Ends with a barrier. False if none of the tokens can be attended to.
template <typename T>
__device__ __forceinline__ bool fill_stage(const DecodeParams& p, const Work& work, int segment, int count,
                                           Stage<T>& stage) {
  constexpr float kLog2E = 1.4426950408889634f;
  constexpr int kEach = 2;  // tokens per thread whose loads are under way together
  const int padded = (count + T::kStepTokens - 1) / T::kStepTokens * T::kStepTokens;
  const int64_t start = static_cast<int64_t>(work.place.list_row) * p.max_selected + segment;
  const int32_t* table = p.page_table + static_cast<int64_t>(work.place.sequence) * p.max_pages;  // [max_pages] i32
  bool bad = false;
  for (int begin = 0; begin < padded; begin += kEach * T::kThreads) {
    int token[kEach], page[kEach];
    float log_weight[kEach];
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int i = min(begin + k * T::kThreads + static_cast<int>(threadIdx.x), count - 1);
      token[k] = segment + i;
      log_weight[k] = 0.0f;
      if (work.extent.dense) continue;
      token[k] = p.token_ids[start + i];
      if (p.log_weight != nullptr) log_weight[k] = p.log_weight[start + i];
    }
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      page[k] = -1;
      if (static_cast<uint32_t>(token[k]) < static_cast<uint32_t>(work.extent.kv_len))
        page[k] = table[token[k] >> p.page_shift];
    }
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int i = begin + k * T::kThreads + threadIdx.x;
      if (i >= padded) break;
      const bool good = static_cast<uint32_t>(page[k]) < static_cast<uint32_t>(p.num_pages);
      const uint32_t within = static_cast<uint32_t>(token[k]) & ((1u << p.page_shift) - 1u);
      stage.row[i] = good ? static_cast<uint32_t>(page[k]) * p.page_units + within * p.token_units : kNoRow;
      stage.log2_weight[i] = good && i < count ? log_weight[k] * kLog2E : -INFINITY;
      if constexpr (T::kCertificates) stage.missing[i] = -expm1f(-log_weight[k]);
      if (p.num_queries > 1) stage.token[i] = token[k];
      if (!good) {
        bad = true;
        report(p, work, segment + min(i, count - 1), token[k], page[k]);
      }
    }
  }
  return !__syncthreads_or(bad) || replace_missing_rows<T>(stage, padded);
}

// Queries in the order of the matrix instruction: entry (step, lane (g, c)) holds, of the 16 dims that lanes (., c) load of a key for
// that step, dims (0, 1) of slots g and g + 8 and dims (2, 3) of both. Zeros for slots that serve nothing.
template <typename T>
__device__ __forceinline__ void load_queries(const DecodeParams& p, const Place& place,
                                             uint4* queries) {  // queries [head_dim / 16, 32] 16 bytes
  // A thread's entries differ by whole steps only: one slot (or two), one quarter of a step.
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const auto row_of = [&](int slot) -> const char* {
    const int column = slot % T::kColumns;
    if (column >= place.num_columns) return nullptr;
    return static_cast<const char*>(p.q) + static_cast<int64_t>(place.output_row(p, column)) * (T::kHeadDim * 2) +
           c * T::kKeySteps * 8;
  };
  const char* low = row_of(g);  // [head_dim] 16 bits; nullable
  const char* high = T::kColumnTiles == 2 ? row_of(g + 8) : nullptr;
#pragma unroll
  for (int k = 0; k < T::kHeadDim / 16 / T::kWarps; ++k) {
    const int step = threadIdx.x / 32 + k * T::kWarps;
    // Lane c loads 4 * kKeySteps consecutive dims of every 16 * kKeySteps of a key; each step uses four of them.
    const int offset = (step / T::kKeySteps * 16 * T::kKeySteps + step % T::kKeySteps * 4) * 2;
    uint2 first = {0, 0}, second = {0, 0};
    if (low != nullptr) first = *reinterpret_cast<const uint2*>(low + offset);
    if (high != nullptr) second = *reinterpret_cast<const uint2*>(high + offset);
    queries[step * 32 + lane] = {first.x, second.x, first.y, second.y};
  }
}

}  // namespace rarefy::cuda
