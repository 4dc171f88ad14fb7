// The cache of any number of sequences: pages of keys and values shared with copy-on-write, and what layers that are not full
// attention keep instead (CacheKind).
//
//   auto cache = KvCache::create({.num_layers = 6, .num_kv_heads = 2, .head_dim = 64, .max_tokens = 32768});
//   KvSequence context = (*cache)->new_sequence();
//   context.begin_append(n); for each layer { context.write(layer, k, v); attend(context.view(layer)); } context.commit();
//   KvSequence question = context.fork();   // shares every page; the first write to a shared page copies that page only
//
// A page covers `page_size` consecutive tokens of all layers and KV heads. Selectors hang their indexes off the same page
// ids (add_index): an index entry travels, is shared and is copied together with the keys it describes.
//
// Window layers hold pages too, of a pool of their own, and give them back as they fall out of the window: a ring whose slots
// are pages, which can be shared like any other. Recurrent layers hold one state for all tokens so far; states are never
// changed once committed, so that sequences and snapshots share them. Neither can be cut back to any length as pages can:
// truncate() needs the window to be there still, or a snapshot.
//
// Pool memory is reserved as address space and touched on first use. Ownership: the pool lives as long as any of its
// sequences. Threads: a sequence belongs to one thread at a time; different sequences of one pool may be used from different
// threads (page bookkeeping is locked, and keys and values of a page that two sequences share are never written; for their
// index entries see lock_index).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "rarefy/attention/paged_kv.h"
#include "rarefy/core/status.h"

namespace rarefy {

enum class CacheKind : int32_t {
  paged = 0,      // keys and values of every token; indexes
  window = 1,     // keys and values of the last window_tokens tokens
  recurrent = 2,  // a state of fixed size
};

struct KvCacheConfig {
  int32_t num_layers = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  DType dtype = DType::bf16;  // f32, f16 or bf16
  int32_t page_size = 16;     // tokens; a power of two, 1..256
  int64_t max_tokens = 0;     // capacity of the pool over all sequences; rounded up to pages

  std::vector<CacheKind> layer_kinds = {};  // one for each of num_layers; empty = all paged
  int32_t window_tokens = 0;                // what a query of a window layer sees, itself included
  int64_t state_floats = 0;                 // of one recurrent layer
  int32_t max_snapshots = 8;                // of one sequence; a further one replaces the oldest

  CacheKind kind(int32_t layer) const {
    return layer_kinds.empty() ? CacheKind::paged : layer_kinds[static_cast<std::size_t>(layer)];
  }
};

// The state of a recurrent layer during an append.
struct RecurrentState {
  const float* before = nullptr;  // [state_floats] f32; of the committed tokens; null when there are none
  float* after = nullptr;         // [state_floats] f32; to be filled; becomes the state at commit()
};

class KvSequence;

// Where the entries of one layer of an index lie, for readers that visit many; pages by PagedKvView::page_table. Non-owning.
struct PagedIndexView {
  const std::byte* entries = nullptr;  // [num_kv_heads, num_pages, blocks_per_page, block_bytes] bytes
  int64_t head_stride_bytes = 0;
  int64_t page_stride_bytes = 0;
  int64_t block_bytes = 0;
};

class KvCache : public std::enable_shared_from_this<KvCache> {
 public:
  static Expected<std::shared_ptr<KvCache>> create(const KvCacheConfig& config);
  virtual ~KvCache() = default;

  virtual const KvCacheConfig& config() const = 0;
  virtual int32_t num_pages() const = 0;
  virtual int32_t num_free_pages() const = 0;
  // Pages of window layers: a pool of their own.
  virtual int32_t num_free_window_pages() const = 0;
  virtual KvSequence new_sequence() = 0;

  // Makes room for an index of `block_bytes` for every `block_tokens` tokens of one KV head and layer; page_size must be a
  // multiple of block_tokens. Returns its number. The same name again returns the same index. Sequences may hold tokens
  // already; none of them is encoded. `trained_bytes` are kept for every paged layer and KV head besides.
  virtual Expected<int32_t> add_index(std::string_view name, int32_t block_tokens, int64_t block_bytes,
                                      int64_t trained_bytes) = 0;
  Expected<int32_t> add_index(std::string_view name, int32_t block_tokens, int64_t block_bytes) {
    return add_index(name, block_tokens, block_bytes, 0);
  }
  // Trained data of an index: written once for all KV heads of a layer, by whoever holds lock_training() and finds them not
  // trained, then read by everybody.
  virtual std::byte* trained(int32_t index, int32_t layer,
                             int32_t kv_head) const = 0;  // [trained_bytes] bytes; 64-byte aligned
  virtual bool is_trained(int32_t index, int32_t layer) const = 0;
  virtual void set_trained(int32_t index, int32_t layer) = 0;
  [[nodiscard]] virtual std::unique_lock<std::mutex> lock_training() = 0;
};

class KvSequence {
 public:
  KvSequence(KvSequence&&) noexcept;
  KvSequence& operator=(KvSequence&&) noexcept;
  ~KvSequence();

  KvCache& cache() const;
  int32_t length() const;   // committed tokens
  int32_t pending() const;  // tokens between begin_append and commit

  // Room for `num_tokens` more tokens in every layer: allocates pages and states, copies a partly filled last page that is shared,
  // index entries included. On failure the sequence is as before.
  Status begin_append(int32_t num_tokens);
  // Stores the pending tokens of one paged or window layer, rounded to the cache's dtype.
  Status write(int32_t layer,
               const float* keys,     // [pending, num_kv_heads, head_dim] f32
               const float* values);  // [pending, num_kv_heads, head_dim] f32
  // The state of a recurrent layer, while tokens are pending. Every recurrent layer's must be filled before commit().
  Expected<RecurrentState> state(int32_t layer);
  void commit();  // pending tokens become part of the sequence
  // Forgets the pending tokens and gives their pages back. A last page that begin_append copied stays copied.
  void abort_append();

  KvSequence fork() const;  // snapshots included; Pre: pending() == 0
  // 0 <= new_length <= length(); Pre: pending() == 0. With window or recurrent layers only lengths that reusable_length() gives
  // back unchanged.
  Status truncate(int32_t new_length);
  // The largest length up to `length` that truncate() accepts: `length` itself where all layers are paged; else also 0, the
  // snapshots, and lengths whose whole window is still held.
  int32_t reusable_length(int32_t length) const;
  // Remembers window and states as they are, so that truncate(length()) works from later on. Costs the window's pages and one
  // state of every recurrent layer; nothing where all layers are paged. Pre: pending() == 0
  void keep_snapshot();

  // View of one paged or window layer; valid until the next begin_append, commit, truncate or move. kv_len = length() +
  // pending(); of a window layer what is left of that when released pages are taken off the front: token 0 of the view is the
  // first token of a page.
  PagedKvView view(int32_t layer) const;

  // Entry of an index for one block of this sequence; blocks are numbered from the start of the sequence. Entries of a page
  // are contiguous; consecutive pages usually are. 64-byte aligned when block_bytes is a multiple of 64.
  std::byte* index_entry(int32_t index, int32_t layer, int32_t kv_head, int32_t block) const;  // [block_bytes] bytes
  // The same entries, for reading; valid as long as the cache.
  PagedIndexView index_view(int32_t index, int32_t layer) const;
  // How many leading tokens of a logical page an index has already encoded for a layer (all KV heads). begin_append lowers
  // the number to whole blocks where tokens were truncated or aborted, so that their block is encoded anew.
  int32_t encoded_tokens(int32_t index, int32_t layer, int32_t logical_page) const;
  void set_encoded_tokens(int32_t index, int32_t layer, int32_t logical_page, int32_t num_tokens);
  // To be held while entries from this page on are encoded: sequences that share pages may want to encode them from several
  // threads. Read encoded_tokens() again under it. Holds no lock when all these pages belong to this sequence alone.
  [[nodiscard]] std::unique_lock<std::mutex> lock_index(int32_t first_logical_page) const;

  class Impl;
  explicit KvSequence(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace rarefy
