// PageGroup: the pages of all layers of one kind (paged, or window) and the memory behind them. Keys and values of a layer each
// fill one region in head-major order, [num_kv_heads, num_pages, page_size, head_dim], so that the tokens of a head stream
// contiguously. Layers are counted within the kind. Thread-safe in so far as pages are exclusive to a sequence or read-only.
#pragma once

#include "kv/mapped_memory.h"
#include "kv/page_pool.h"
#include "rarefy/kv/kv_cache.h"

namespace rarefy {

class PageGroup {
 public:
  // Pre: `config` was checked by KvCache::create.
  PageGroup(const KvCacheConfig& config, int32_t num_layers, int32_t num_pages);
  Status reserve();  // the memory; before anything else

  PagePool& pages() { return pages_; }
  const PagePool& pages() const { return pages_; }
  int32_t num_layers() const { return num_layers_; }
  int32_t page_size() const { return page_size_; }

  std::byte* keys(int32_t layer) const { return memory_.data() + 2 * layer * region_bytes_; }
  std::byte* values(int32_t layer) const { return keys(layer) + region_bytes_; }
  int64_t row_bytes() const { return row_bytes_; }
  int64_t page_stride() const { return int64_t{page_size_} * head_dim_; }     // elements
  int64_t head_stride() const { return page_stride() * pages_.num_pages(); }  // elements
  // From keys(layer) or values(layer) to a row.
  int64_t row_offset_bytes(int32_t kv_head, int32_t page, int32_t token) const {
    return ((int64_t{kv_head} * pages_.num_pages() + page) * page_size_ + token) * row_bytes_;
  }

  // The first `num_tokens` rows of every layer and head.
  void copy_page(int32_t from, int32_t to, int32_t num_tokens);

 private:
  int32_t num_layers_, num_kv_heads_, page_size_, head_dim_;
  int64_t max_tokens_;        // for messages
  int64_t row_bytes_;         // one token of one KV head
  int64_t region_bytes_ = 0;  // keys (or values) of one layer, a multiple of 4096
  PagePool pages_;
  MappedMemory memory_;
};

}  // namespace rarefy
