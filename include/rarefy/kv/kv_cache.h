// The paged KV cache: one pool of pages, shared by any number of sequences, with copy-on-write.
//
//   auto cache = KvCache::create({.num_layers = 6, .num_kv_heads = 2, .head_dim = 64, .max_tokens = 32768});
//   KvSequence context = (*cache)->new_sequence();
//   context.begin_append(n); for each layer { context.write(layer, k, v); attend(context.view(layer)); } context.commit();
//   KvSequence question = context.fork();   // shares every page; the first write to a shared page copies that page only
//
// A page covers `page_size` consecutive tokens of all layers and KV heads. Selectors hang their indexes off the same page
// ids (add_index): an index entry travels, is shared and is copied together with the keys it describes.
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

#include "rarefy/attention/paged_kv.h"
#include "rarefy/core/status.h"

namespace rarefy {

struct KvCacheConfig {
  int32_t num_layers = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  DType dtype = DType::bf16;  // f32, f16 or bf16
  int32_t page_size = 16;     // tokens; a power of two, 1..256
  int64_t max_tokens = 0;     // capacity of the pool over all sequences; rounded up to pages
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
  virtual KvSequence new_sequence() = 0;

  // Makes room for an index of `block_bytes` for every `block_tokens` tokens of one KV head and layer; page_size must be a
  // multiple of block_tokens. Returns its number. The same name again returns the same index. Sequences may hold tokens
  // already; none of them is encoded.
  virtual Expected<int32_t> add_index(std::string_view name, int32_t block_tokens, int64_t block_bytes) = 0;
};

class KvSequence {
 public:
  KvSequence(KvSequence&&) noexcept;
  KvSequence& operator=(KvSequence&&) noexcept;
  ~KvSequence();

  KvCache& cache() const;
  int32_t length() const;   // committed tokens
  int32_t pending() const;  // tokens between begin_append and commit

  // Room for `num_tokens` more tokens in every layer: allocates pages, copies a partly filled last page that is shared, index
  // entries included. On failure nothing changed.
  Status begin_append(int32_t num_tokens);
  // Stores the pending tokens of one layer, rounded to the cache's dtype.
  Status write(int32_t layer,
               const float* keys,     // [pending, num_kv_heads, head_dim] f32
               const float* values);  // [pending, num_kv_heads, head_dim] f32
  void commit();                      // pending tokens become part of the sequence
  // Forgets the pending tokens and gives their pages back. A last page that begin_append copied stays copied.
  void abort_append();

  KvSequence fork() const;              // Pre: pending() == 0
  Status truncate(int32_t new_length);  // 0 <= new_length <= length(); Pre: pending() == 0

  // View of one layer with kv_len = length() + pending(); valid until the next begin_append, truncate or move.
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
