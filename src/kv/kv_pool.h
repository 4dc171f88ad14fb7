// KvPool: the memory behind a KvCache: one PageGroup for paged layers, one for window layers, states for recurrent ones, and
// index entries beside the pages of paged layers, [num_paged_layers, num_kv_heads, num_pages, blocks_per_page, block_bytes].
// Callers number layers as the model does.
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

#include "core/aligned_buffer.h"
#include "kv/mapped_memory.h"
#include "kv/page_group.h"
#include "kv/state_pool.h"
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
  std::vector<std::atomic<int32_t>>
      encoded;  // [num_pages, num_paged_layers] i32; leading tokens of the page that are encoded
  int64_t trained_bytes = 0;
  int64_t trained_stride_bytes = 0;           // from a (layer, KV head) to the next
  AlignedBuffer trained;                      // [num_paged_layers, num_kv_heads, trained_stride_bytes] bytes
  std::vector<std::atomic<bool>> is_trained;  // [num_paged_layers]
};

// Enough for comparisons; a fixed table lets readers go without a lock.
inline constexpr int32_t kMaxIndexes = 64;

class KvPool final : public KvCache {
 public:
  // Pre: `config` was checked by KvCache::create.
  static Expected<std::shared_ptr<KvPool>> create(const KvCacheConfig& config, int32_t num_pages);

  const KvCacheConfig& config() const override { return config_; }
  int32_t num_pages() const override { return paged_.pages().num_pages(); }
  int32_t num_free_pages() const override { return paged_.pages().num_free(); }
  int32_t num_free_window_pages() const override { return window_.pages().num_free(); }
  KvSequence new_sequence() override;
  using KvCache::add_index;
  Expected<int32_t> add_index(std::string_view name, int32_t block_tokens, int64_t block_bytes,
                              int64_t trained_bytes) override;
  std::byte* trained(int32_t index, int32_t layer, int32_t kv_head) const override;
  bool is_trained(int32_t index, int32_t layer) const override {
    return indexes_[index]->is_trained[static_cast<size_t>(slot(layer))].load(std::memory_order_acquire);
  }
  void set_trained(int32_t index, int32_t layer) override {
    indexes_[index]->is_trained[static_cast<size_t>(slot(layer))].store(true, std::memory_order_release);
  }
  std::unique_lock<std::mutex> lock_training() override { return std::unique_lock(training_mutex_); }

  // Of paged or window layers.
  PageGroup& group(CacheKind kind) { return kind == CacheKind::window ? window_ : paged_; }
  bool has(CacheKind kind) const { return count(kind) > 0; }
  int32_t count(CacheKind kind) const { return counts_[static_cast<size_t>(kind)]; }
  // Number of a layer among those of its kind.
  int32_t slot(int32_t layer) const { return slots_[static_cast<size_t>(layer)]; }
  StatePool& states() { return states_; }

  std::mutex& index_mutex() { return index_mutex_; }
  KvIndex& index(int32_t number) const { return *indexes_[number]; }
  std::byte* index_entry(const KvIndex& index, int32_t layer, int32_t kv_head, int32_t page) const {
    return slot_entry(index, slot(layer), kv_head, page);
  }
  std::atomic<int32_t>& encoded(KvIndex& index, int32_t layer, int32_t page) const {
    return slot_encoded(index, slot(layer), page);
  }

  // Content of a page: the first `num_tokens` rows of every layer and head, and every index.
  void copy_page(CacheKind kind, int32_t from, int32_t to, int32_t num_tokens);
  // A page is about to be filled anew, or on from `num_tokens`: what an index says about more tokens than that is forgotten.
  // Partial blocks are forgotten whole, because an entry may depend on tokens that are gone.
  void keep_encoded(CacheKind kind, int32_t page, int32_t num_tokens);

 private:
  KvPool(const KvCacheConfig& config, std::vector<int32_t> slots, const std::array<int32_t, 3>& counts, int32_t num_pages);
  std::byte* slot_entry(const KvIndex& index, int32_t slot, int32_t kv_head, int32_t page) const;
  std::atomic<int32_t>& slot_encoded(KvIndex& index, int32_t slot, int32_t page) const {
    return index.encoded[static_cast<size_t>(page) * count(CacheKind::paged) + slot];
  }

  KvCacheConfig config_;
  std::vector<int32_t> slots_;     // [num_layers] i32; see slot()
  std::array<int32_t, 3> counts_;  // layers of each kind
  PageGroup paged_;
  PageGroup window_;
  StatePool states_;
  std::mutex index_mutex_;     // creation of indexes; writing of entries in shared pages
  std::mutex training_mutex_;  // writing of trained data
  std::array<std::unique_ptr<KvIndex>, kMaxIndexes> indexes_;
  std::atomic<int32_t> num_indexes_{0};
};

}  // namespace rarefy
