// Which work a block has: its list, how the list is cut, and what to bring into the L2 cache before the first load.
//
// These are the instructions that run while no row is under way, so they are few: no divisions but quick ones, none at all for lists per KV head.
#pragma once

#include "cuda/decode/params.h"
#include "cuda/device/ptx.cuh"

namespace rarefy::cuda {

// Keeps the first error of a run; later ones are dropped.
__device__ inline void record_error(ErrorRecord* error, int32_t kind, int32_t sequence, int32_t list, int32_t position,
                                    int32_t value, int32_t limit) {
  if (atomicCAS(&error->kind, 0, kind) != 0) return;
  error->sequence = sequence, error->list = list, error->position = position;
  error->value = value, error->limit = limit;
}

// Which list and columns a block has.
struct Place {
  int sequence, list, column_block, first_column, num_columns;
  int block;  // of the list's

  Place() = default;
  // With as many blocks for every list.
  __device__ explicit Place(const DecodeParams& p) {
    sequence = blockIdx.z;
    list = blockIdx.y;
    block = blockIdx.x;
    column_block = 0;
    if (p.num_column_blocks > 1) {
      list = quick_div(static_cast<int32_t>(blockIdx.y), p.num_column_blocks);
      column_block = blockIdx.y - list * p.num_column_blocks;
    }
    first_column = column_block * p.columns_per_block;
    num_columns = min(p.columns_per_block, p.heads_per_list * p.num_queries - first_column);
  }
  // Row of counts; times max_selected: of ids and weights.
  __device__ int list_row(const DecodeParams& p) const { return sequence * p.num_lists + list; }
  __device__ int kv_head(const DecodeParams& p) const {
    return p.lists_per_kv_head == 1 ? list : quick_div(list, p.lists_per_kv_head);
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

// What device memory says about a list's length.
struct Given {
  int kv_len, count;

  // Asked for before anything else, as everything waits for it.
  static __device__ __forceinline__ Given now(const DecodeParams& p, int sequence, int list) {
    return {load_if(true, p.kv_lens, sequence, 0),
            load_if(p.counts != nullptr, p.counts, sequence * p.num_lists + list, -1)};
  }
  // Before the kernel's wait: past the L1 cache, which would keep it.
  static __device__ __forceinline__ Given early(const DecodeParams& p, int sequence, int list) {
    return {__ldcg(p.kv_lens + sequence), p.counts != nullptr ? __ldcg(p.counts + sequence * p.num_lists + list) : -1};
  }
};

// How long a list is.
struct Extent {
  int kv_len, num_tokens;
  bool dense;

  Extent() = default;
  __device__ __forceinline__ Extent(const DecodeParams& p, int sequence, int list, const Given& given, bool reports) {
    kv_len = max(0, min(given.kv_len, p.max_kv_len));
    if (kv_len != given.kv_len && reports)
      record_error(p.error, kErrorLength, sequence, list, 0, given.kv_len, p.max_kv_len);
    int count = given.count;
    if (count < -1 || count > p.max_selected) {
      if (reports) record_error(p.error, kErrorCount, sequence, list, 0, count, p.max_selected);
      count = count < 0 ? 0 : p.max_selected;
    }
    dense = count == -1;
    num_tokens = dense ? kv_len : count;
  }
  // Before the kernel's wait: what is there now, or a full list.
  static __device__ __forceinline__ Extent guess(const DecodeParams& p, int sequence, int list) {
    if (p.reads_early) return {p, sequence, list, Given::early(p, sequence, list), false};
    Extent full;
    full.kv_len = 0, full.num_tokens = p.full_tokens, full.dense = p.counts == nullptr;
    return full;
  }
  // Whether the same tokens are a warp's; kv_len is not asked.
  __device__ bool is_as_long(const Extent& other) const { return num_tokens == other.num_tokens && dense == other.dense; }
};

struct Work {
  Place place;
  Extent extent;
  bool in_shared;  // parts meet in shared memory, else in the workspace
};

// Brings into the L2 cache what the first loads will ask for one after the other: counts, ids, weights, page table. Nothing is read,
// so this may run before the kernels that write them have finished. Ids as if lists were full; the block also prefetches those of
// a block that will run about when it ends, p.prefetch_sequences further on.
__device__ __forceinline__ void prefetch_lists(const DecodeParams& p, const Place& place) {
  const int thread = threadIdx.x, threads = blockDim.x;  // a power of two
  if (thread == 0) prefetch_l2(p.kv_lens + place.sequence);
  if (thread == 1 && p.counts != nullptr) prefetch_l2(p.counts + place.list_row(p));
  if (thread < p.prefetch_table_lines) {  // each block takes a share of the sequence's page table
    const int entry = ((blockIdx.y * gridDim.x + blockIdx.x) * p.prefetch_table_lines + thread) * 32;
    if (entry < p.max_pages) prefetch_l2(p.page_table + static_cast<int64_t>(place.sequence) * p.max_pages + entry);
  }
  if (p.token_ids == nullptr) return;
  const int half = threads / 2, line = thread & (half - 1), position = blockIdx.x * p.block_tokens + line * 32;
  if (line * 32 >= p.block_tokens || position >= p.max_selected) return;
  const int32_t* ids = p.token_ids;  // [batch, num_lists, max_selected] i32; weights have the same layout
  if (thread >= half) ids = reinterpret_cast<const int32_t*>(p.log_weight);
  if (ids == nullptr) return;
  prefetch_l2(ids + static_cast<int64_t>(place.list_row(p)) * p.max_selected + position);
  if (place.sequence + p.prefetch_sequences >= static_cast<int>(gridDim.z)) return;
  prefetch_l2(ids + static_cast<int64_t>(place.list_row(p) + p.prefetch_sequences * p.num_lists) * p.max_selected +
              position);
}

}  // namespace rarefy::cuda
