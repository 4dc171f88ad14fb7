// PagedKvView: one layer of a paged KV cache, Rarefy's own or another engine's. A row is one token of one KV head and is
// contiguous (head_dim elements); where rows lie is up to the strides, so that NHD ([page, token, head]), HND ([page, head,
// token]) and head-major pools all work in place. Non-owning; keys and values share one layout. All pointers are memory of the
// device that the plan was made for.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rarefy/core/dtype.h"

namespace rarefy {

struct PagedKvView {
  // Any order of strides; rows contiguous; the same strides for keys and values.
  const void* keys = nullptr;    // [num_pages, page_size, num_kv_heads, head_dim] dtype
  const void* values = nullptr;  // [num_pages, page_size, num_kv_heads, head_dim] dtype
  DType dtype = DType::bf16;
  int64_t page_stride = 0;   // elements from a page to the next
  int64_t token_stride = 0;  // elements from a token to the next within a page
  int64_t head_stride = 0;   // elements from a KV head to the next
  int32_t num_pages = 0;
  int32_t page_size = 0;  // tokens; a power of two
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;

  const int32_t* page_table = nullptr;  // [batch, max_pages_per_sequence] i32; physical page of each logical page
  int32_t max_pages_per_sequence = 0;
  const int32_t* kv_lens = nullptr;  // [batch] i32; cached tokens of each sequence, the current ones included

  // What a stored number stands for, per KV head: key = key_scales[head] * stored. With dtype f8_e4m3 only.
  const float* key_scales = nullptr;    // [num_kv_heads] f32; nullable = all 1
  const float* value_scales = nullptr;  // [num_kv_heads] f32; nullable = all 1

  // Element offset of a row from `keys` or `values`. Pre: 0 <= token < kv_lens[sequence].
  int64_t row_offset(int32_t sequence, int32_t token, int32_t kv_head) const {
    const int32_t page = page_table[static_cast<int64_t>(sequence) * max_pages_per_sequence + token / page_size];
    return page * page_stride + (token % page_size) * token_stride + kv_head * head_stride;
  }
};

// Checks what the view itself says: pointers, strides, power-of-two pages. Reads no memory behind its pointers.
Status validate_layout(const PagedKvView& kv);
// The same and what lies behind them, for host memory: lengths within the page table, pages within the pool.
Status validate(const PagedKvView& kv, int32_t batch);

}  // namespace rarefy
