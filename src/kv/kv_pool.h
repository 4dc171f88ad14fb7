// KvPool: the memory behind a KvCache. Keys and values of a layer each fill one region in head-major order, [num_kv_heads,
// num_pages, page_size, head_dim], so that the tokens of a head stream contiguously; index entries likewise, [num_layers,
// num_kv_heads, num_pages, blocks_per_page, block_bytes]. Page ids come from PagePool.
//
// Thread-safe as kv_cache.h says: pages are exclusive to a sequence or read-only, encoded counters are atomic, an index is
// published after it is complete.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kv/mapped_memory.h"
#include "kv/page_pool.h"
#include "rarefy/kv/kv_cache.h"

namespace rarefy {

// One index over all pages.
struct KvIndex {
  std::string name;
  int32_t block_tokens = 0;
  int32_t blocks_per_page = 0;
  int64_t block_bytes = 0;
  int64_t head_stride_bytes = 0;  // from a (layer, KV head) to the next
  MappedMemory memory;
  std::vector<std::atomic<int32_t>> encoded;  // [num_pages, num_layers] i32; leading tokens of the page that are encoded
};

// Enough for comparisons; a fixed table lets readers go without a lock.
inline constexpr int32_t kMaxIndexes = 64;

class KvPool final : public KvCache {
 public:
  // Pre: `config` was checked by KvCache::create.
  static Expected<std::shared_ptr<KvPool>> create(const KvCacheConfig& config, int32_t num_pages);

  const KvCacheConfig& config() const override { return config_; }
  int32_t num_pages() const override { return pages_.num_pages(); }
  int32_t num_free_pages() const override { return pages_.num_free(); }
  KvSequence new_sequence() override;
  Expected<int32_t> add_index(std::string_view name, int32_t block_tokens, int64_t block_bytes) override;

  PagePool& pages() { return pages_; }
  std::mutex& index_mutex() { return index_mutex_; }
  KvIndex& index(int32_t number) const { return *indexes_[number]; }

  std::byte* keys(int32_t layer) const { return memory_.data() + 2 * layer * region_bytes_; }
  std::byte* values(int32_t layer) const { return keys(layer) + region_bytes_; }
  int64_t row_bytes() const { return row_bytes_; }
  int64_t page_stride() const { return int64_t{config_.page_size} * config_.head_dim; }  // elements
  int64_t head_stride() const { return page_stride() * pages_.num_pages(); }             // elements
  std::byte* index_entry(const KvIndex& index, int32_t layer, int32_t kv_head, int32_t page) const;
  std::atomic<int32_t>& encoded(KvIndex& index, int32_t layer, int32_t page) const {
    return index.encoded[static_cast<size_t>(page) * config_.num_layers + layer];
  }

  // Content of a page: the first `num_tokens` rows of every layer and head, and every index.
  void copy_page(int32_t from, int32_t to, int32_t num_tokens);
  // A page is about to be filled anew, or on from `num_tokens`: what an index says about more tokens than that is forgotten.
  // Partial blocks are forgotten whole, because an entry may depend on tokens that are gone.
  void keep_encoded(int32_t page, int32_t num_tokens);

 private:
  KvPool(const KvCacheConfig& config, int32_t num_pages) : config_(config), pages_(num_pages) {}

  KvCacheConfig config_;
  PagePool pages_;
  int64_t row_bytes_ = 0;     // one token of one KV head
  int64_t region_bytes_ = 0;  // keys (or values) of one layer, a multiple of 4096
  MappedMemory memory_;
  std::mutex index_mutex_;  // creation of indexes; writing of entries in shared pages
  std::array<std::unique_ptr<KvIndex>, kMaxIndexes> indexes_;
  std::atomic<int32_t> num_indexes_{0};
};

}  // namespace rarefy
