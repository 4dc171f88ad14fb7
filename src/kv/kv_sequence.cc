#include <algorithm>
#include <limits>

#include "kv/kv_pool.h"
#include "kv/round_rows.h"

namespace rarefy {

class KvSequence::Impl {
 public:
  explicit Impl(std::shared_ptr<KvPool> pool_in) : pool(std::move(pool_in)) { page_table.reserve(16); }
  ~Impl() { pool->pages().release(page_table); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  int32_t page_size() const { return pool->config().page_size; }
  int32_t pages_for(int32_t num_tokens) const {
    return static_cast<int32_t>((int64_t{num_tokens} + page_size() - 1) / page_size());
  }
  // Gives back every page that the first `num_tokens` tokens do not need.
  void shrink_to(int32_t num_tokens) {
    const auto keep = static_cast<size_t>(pages_for(num_tokens));
    if (keep >= page_table.size()) return;
    pool->pages().release(std::span(page_table).subspan(keep));
    page_table.resize(keep);
  }

  std::shared_ptr<KvPool> pool;
  std::vector<int32_t> page_table;  // [num_logical_pages] i32; physical page of each logical page
  int32_t length = 0;
  int32_t kv_len = 0;  // length + pending tokens
};

KvSequence KvPool::new_sequence() {
  return KvSequence(std::make_unique<KvSequence::Impl>(std::static_pointer_cast<KvPool>(shared_from_this())));
}

KvSequence::KvSequence(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
KvSequence::KvSequence(KvSequence&&) noexcept = default;
KvSequence& KvSequence::operator=(KvSequence&&) noexcept = default;
KvSequence::~KvSequence() = default;

KvCache& KvSequence::cache() const { return *impl_->pool; }
int32_t KvSequence::length() const { return impl_->length; }
int32_t KvSequence::pending() const { return impl_->kv_len - impl_->length; }

Status KvSequence::begin_append(int32_t num_tokens) {
  Impl& self = *impl_;
  if (pending() != 0) {
    return Status::invalid_argument("KV cache: expected no append in progress, got " + std::to_string(pending()) +
                                    " pending tokens; commit or abort them first");
  }
  if (num_tokens < 1 || num_tokens > std::numeric_limits<int32_t>::max() - self.length) {
    return Status::invalid_argument("KV cache: expected 1 to " +
                                    std::to_string(std::numeric_limits<int32_t>::max() - self.length) +
                                    " tokens to append, got " + std::to_string(num_tokens));
  }
  const auto num_held = static_cast<int32_t>(self.page_table.size());
  const int32_t tokens_in_last = self.length % self.page_size();
  const int32_t last_page = tokens_in_last > 0 ? self.page_table.back() : -1;
  PagePool& pages = self.pool->pages();
  const PagePool::Taken taken = pages.take(self.pages_for(self.length + num_tokens) - num_held, last_page);
  if (!taken.ok) {
    return Status::resource_exhausted(
        "KV cache: no room for " + std::to_string(num_tokens) + " more tokens: " + std::to_string(taken.num_needed) +
        " pages needed, " + std::to_string(taken.num_free) + " of " + std::to_string(pages.num_pages()) + " free (" +
        std::to_string(self.page_size()) +
        " tokens a page); release or truncate sequences, or create the cache with a larger max_tokens");
  }
  for (const int32_t page : taken.pages) self.pool->keep_encoded(page, 0);
  std::span<const int32_t> fresh(taken.pages);
  if (taken.copy_last) {
    self.pool->copy_page(last_page, fresh.front(), tokens_in_last);
    pages.release({&last_page, 1});  // after the copy: its last holder may write to it from now on
    self.page_table.back() = fresh.front();
    fresh = fresh.subspan(1);
  }
  // The page is ours alone by now. Its entries may cover tokens that were truncated or aborted.
  if (last_page >= 0) self.pool->keep_encoded(self.page_table.back(), tokens_in_last);
  self.page_table.insert(self.page_table.end(), fresh.begin(), fresh.end());
  self.kv_len = self.length + num_tokens;
  return {};
}

Status KvSequence::write(int32_t layer, const float* keys, const float* values) {
  const Impl& self = *impl_;
  const KvCacheConfig& config = self.pool->config();
  if (layer < 0 || layer >= config.num_layers) {
    return Status::invalid_argument("KV cache: write: expected a layer in 0.." + std::to_string(config.num_layers - 1) +
                                    ", got " + std::to_string(layer));
  }
  if (pending() == 0 || keys == nullptr || values == nullptr) {
    return Status::invalid_argument(
        "KV cache: write: expected pending tokens (call begin_append first), keys and values, got " +
        std::to_string(pending()) + " tokens" + (keys == nullptr ? ", no keys" : "") +
        (values == nullptr ? ", no values" : ""));
  }
  const int64_t page_bytes = config.page_size * self.pool->row_bytes();
  std::byte* const key_region = self.pool->keys(layer);
  std::byte* const value_region = self.pool->values(layer);
  const auto offset_of = [&](int32_t position, int32_t kv_head) {
    const int64_t page = int64_t{kv_head} * self.pool->num_pages() + self.page_table[position / config.page_size];
    return page * page_bytes + position % config.page_size * self.pool->row_bytes();
  };
  if (pending() == 1) {
    // Rows of different heads lie far apart, and stores commit in order: without this each head would wait for memory in turn.
    for (int32_t kv_head = 0; kv_head < config.num_kv_heads; ++kv_head) {
      const int64_t to = offset_of(self.length, kv_head);
      for (int64_t byte = 0; byte < self.pool->row_bytes(); byte += 64) {
        __builtin_prefetch(key_region + to + byte, 1);
        __builtin_prefetch(value_region + to + byte, 1);
      }
    }
  }
  for (int32_t position = self.length; position < self.kv_len; ++position) {
    const int64_t from = int64_t{position - self.length} * config.num_kv_heads * config.head_dim;
    for (int32_t kv_head = 0; kv_head < config.num_kv_heads; ++kv_head) {
      const int64_t to = offset_of(position, kv_head);
      const int64_t head_from = from + int64_t{kv_head} * config.head_dim;
      round_row(keys + head_from, config.head_dim, config.dtype, key_region + to);
      round_row(values + head_from, config.head_dim, config.dtype, value_region + to);
    }
  }
  return {};
}

void KvSequence::commit() { impl_->length = impl_->kv_len; }

void KvSequence::abort_append() {
  impl_->kv_len = impl_->length;
  impl_->shrink_to(impl_->length);
}

KvSequence KvSequence::fork() const {
  const Impl& self = *impl_;
  auto copy = std::make_unique<Impl>(self.pool);
  copy->page_table.assign(self.page_table.begin(), self.page_table.begin() + self.pages_for(self.length));
  self.pool->pages().share(copy->page_table);
  copy->length = copy->kv_len = self.length;
  return KvSequence(std::move(copy));
}

Status KvSequence::truncate(int32_t new_length) {
  Impl& self = *impl_;
  if (new_length < 0 || new_length > self.length || pending() != 0) {
    return Status::invalid_argument("KV cache: truncate: expected a length in 0.." + std::to_string(self.length) +
                                    " and no pending tokens, got " + std::to_string(new_length) + " with " +
                                    std::to_string(pending()) + " pending");
  }
  self.length = self.kv_len = new_length;
  self.shrink_to(new_length);
  // A shared page keeps what other sequences still need; the next append copies it and forgets the rest there.
  const std::span<const int32_t> last = std::span(self.page_table).last(new_length % self.page_size() > 0 ? 1 : 0);
  if (!last.empty() && !self.pool->pages().any_shared(last)) {
    self.pool->keep_encoded(last[0], new_length % self.page_size());
  }
  return {};
}

PagedKvView KvSequence::view(int32_t layer) const {
  const Impl& self = *impl_;
  const KvCacheConfig& config = self.pool->config();
  PagedKvView view;
  view.keys = self.pool->keys(layer);
  view.values = self.pool->values(layer);
  view.dtype = config.dtype;
  view.page_stride = self.pool->page_stride();
  view.token_stride = config.head_dim;
  view.head_stride = self.pool->head_stride();
  view.num_pages = self.pool->num_pages();
  view.page_size = config.page_size;
  view.num_kv_heads = config.num_kv_heads;
  view.head_dim = config.head_dim;
  view.page_table = self.page_table.data();
  view.max_pages_per_sequence = static_cast<int32_t>(self.page_table.size());
  view.kv_lens = &self.kv_len;
  return view;
}

std::byte* KvSequence::index_entry(int32_t index, int32_t layer, int32_t kv_head, int32_t block) const {
  const Impl& self = *impl_;
  const KvIndex& entries = self.pool->index(index);
  const int32_t page = self.page_table[block / entries.blocks_per_page];
  return self.pool->index_entry(entries, layer, kv_head, page) + block % entries.blocks_per_page * entries.block_bytes;
}

PagedIndexView KvSequence::index_view(int32_t index, int32_t layer) const {
  const KvIndex& entries = impl_->pool->index(index);
  PagedIndexView view;
  view.entries = impl_->pool->index_entry(entries, layer, 0, 0);
  view.head_stride_bytes = entries.head_stride_bytes;
  view.page_stride_bytes = entries.blocks_per_page * entries.block_bytes;
  view.block_bytes = entries.block_bytes;
  return view;
}

int32_t KvSequence::encoded_tokens(int32_t index, int32_t layer, int32_t logical_page) const {
  const Impl& self = *impl_;
  return self.pool->encoded(self.pool->index(index), layer, self.page_table[logical_page]).load(std::memory_order_acquire);
}

void KvSequence::set_encoded_tokens(int32_t index, int32_t layer, int32_t logical_page, int32_t num_tokens) {
  const Impl& self = *impl_;
  self.pool->encoded(self.pool->index(index), layer, self.page_table[logical_page])
      .store(num_tokens, std::memory_order_release);
}

std::unique_lock<std::mutex> KvSequence::lock_index(int32_t first_logical_page) const {
  const Impl& self = *impl_;
  const auto first = std::min(static_cast<size_t>(first_logical_page), self.page_table.size());
  if (!self.pool->pages().any_shared(std::span(self.page_table).subspan(first))) return {};
  return std::unique_lock(self.pool->index_mutex());
}

}  // namespace rarefy
