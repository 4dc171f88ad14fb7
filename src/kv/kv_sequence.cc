#include <algorithm>
#include <limits>
#include <utility>

#include "kv/kv_pool.h"
#include "kv/page_run.h"
#include "core/round_rows.h"

namespace rarefy {
namespace {

// What cannot be cut back: the window's pages and the states after `length` tokens.
struct Snapshot {
  int32_t length = 0;
  PageRun window{CacheKind::window};
  StateBlock state;
};

}  // namespace

class KvSequence::Impl {
 public:
  explicit Impl(std::shared_ptr<KvPool> pool_in) : pool(std::move(pool_in)) {}
  ~Impl() {
    forget_snapshots(-1);
    window.release(*pool);
    paged.release(*pool);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  int32_t page_size() const { return pool->config().page_size; }
  bool is_paged_only() const { return !pool->has(CacheKind::window) && !pool->has(CacheKind::recurrent); }
  PageRun& run(CacheKind kind) { return kind == CacheKind::window ? window : paged; }

  // The first token that the next query of a window layer sees.
  int32_t window_start(int32_t at_length) const { return std::max(0, at_length - pool->config().window_tokens + 1); }
  // Whether a sequence cut back to this length needs nothing that is gone.
  bool holds_window(int32_t at_length) const {
    return !pool->has(CacheKind::window) || window_start(at_length) >= window.first_page() * page_size();
  }
  const Snapshot* find_snapshot(int32_t at_length) const {
    for (const Snapshot& snapshot : snapshots) {
      if (snapshot.length == at_length) return &snapshot;
    }
    return nullptr;
  }
  bool can_truncate(int32_t new_length) const {
    if (new_length == length || new_length == 0 || find_snapshot(new_length) != nullptr) return true;
    return !pool->has(CacheKind::recurrent) && holds_window(new_length);
  }
  void forget_snapshots(int32_t longer_than) {
    for (Snapshot& snapshot : snapshots) {
      if (snapshot.length > longer_than) snapshot.window.release(*pool);
    }
    std::erase_if(snapshots, [&](const Snapshot& snapshot) { return snapshot.length > longer_than; });
  }
  void update_window_len() { window_kv_len = kv_len - window.first_page() * page_size(); }

  std::shared_ptr<KvPool> pool;  // first: it outlives the states below
  PageRun paged{CacheKind::paged};
  PageRun window{CacheKind::window};
  StateBlock state;       // after `length` tokens; null at 0
  StateBlock next_state;  // of the pending append
  std::vector<Snapshot> snapshots;
  int32_t length = 0;
  int32_t kv_len = 0;         // length + pending tokens
  int32_t window_kv_len = 0;  // the same from the first held page of window layers on
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
  const auto grow = [&]() -> Status {
    RAREFY_RETURN_IF_ERROR(self.paged.grow(*self.pool, self.length, num_tokens));
    if (self.pool->has(CacheKind::window)) RAREFY_RETURN_IF_ERROR(self.window.grow(*self.pool, self.length, num_tokens));
    if (!self.pool->has(CacheKind::recurrent)) return {};
    self.next_state = self.pool->states().take();
    if (self.next_state != nullptr) return {};
    return Status::resource_exhausted("KV cache: out of memory for the states of recurrent layers; release sequences");
  };
  if (Status status = grow(); !status.ok()) {
    abort_append();
    return status;
  }
  self.kv_len = self.length + num_tokens;
  self.update_window_len();
  return {};
}

Status KvSequence::write(int32_t layer, const float* keys, const float* values) {
  Impl& self = *impl_;
  const KvCacheConfig& config = self.pool->config();
  if (layer < 0 || layer >= config.num_layers || config.kind(layer) == CacheKind::recurrent) {
    return Status::invalid_argument("KV cache: write: expected a layer in 0.." + std::to_string(config.num_layers - 1) +
                                    " that is not recurrent, got " + std::to_string(layer));
  }
  if (pending() == 0 || keys == nullptr || values == nullptr) {
    return Status::invalid_argument(
        "KV cache: write: expected pending tokens (call begin_append first), keys and values, got " +
        std::to_string(pending()) + " tokens" + (keys == nullptr ? ", no keys" : "") +
        (values == nullptr ? ", no values" : ""));
  }
  const CacheKind kind = config.kind(layer);
  const PageGroup& group = self.pool->group(kind);
  const PageRun& run = self.run(kind);
  std::byte* const key_region = group.keys(self.pool->slot(layer));
  std::byte* const value_region = group.values(self.pool->slot(layer));
  if (pending() == 1) {
    // Rows of different heads lie far apart, and stores commit in order: without this each head would wait for memory in turn.
    const int32_t page = run.page_of(self.length, config.page_size);
    for (int32_t kv_head = 0; kv_head < config.num_kv_heads; ++kv_head) {
      const int64_t to = group.row_offset_bytes(kv_head, page, self.length % config.page_size);
      for (int64_t byte = 0; byte < group.row_bytes(); byte += 64) {
        __builtin_prefetch(key_region + to + byte, 1);
        __builtin_prefetch(value_region + to + byte, 1);
      }
    }
  }
  for (int32_t position = self.length; position < self.kv_len; ++position) {
    const int64_t from = int64_t{position - self.length} * config.num_kv_heads * config.head_dim;
    const int32_t page = run.page_of(position, config.page_size);
    for (int32_t kv_head = 0; kv_head < config.num_kv_heads; ++kv_head) {
      const int64_t to = group.row_offset_bytes(kv_head, page, position % config.page_size);
      const int64_t head_from = from + int64_t{kv_head} * config.head_dim;
      round_row(keys + head_from, config.head_dim, config.dtype, key_region + to);
      round_row(values + head_from, config.head_dim, config.dtype, value_region + to);
    }
  }
  return {};
}

Expected<RecurrentState> KvSequence::state(int32_t layer) {
  const Impl& self = *impl_;
  const KvCacheConfig& config = self.pool->config();
  if (layer < 0 || layer >= config.num_layers || config.kind(layer) != CacheKind::recurrent || self.next_state == nullptr) {
    return Status::invalid_argument("KV cache: state: expected a recurrent layer and pending tokens, got layer " +
                                    std::to_string(layer) + " and " + std::to_string(pending()) + " tokens");
  }
  const int64_t offset = self.pool->slot(layer) * config.state_floats;
  return RecurrentState{self.state == nullptr ? nullptr : self.state.get() + offset, self.next_state.get() + offset};
}

void KvSequence::commit() {
  Impl& self = *impl_;
  self.length = self.kv_len;
  if (self.next_state != nullptr) self.state = std::exchange(self.next_state, nullptr);
  if (self.pool->has(CacheKind::window)) self.window.drop_before(*self.pool, self.window_start(self.length));
  self.update_window_len();
}

void KvSequence::abort_append() {
  Impl& self = *impl_;
  self.kv_len = self.length;
  self.next_state = nullptr;
  self.paged.shrink_to(*self.pool, self.length);
  self.window.shrink_to(*self.pool, self.length);
  self.update_window_len();
}

KvSequence KvSequence::fork() const {
  const Impl& self = *impl_;
  auto copy = std::make_unique<Impl>(self.pool);
  copy->paged = self.paged.share(*self.pool, self.length);
  copy->window = self.window.share(*self.pool, self.length);
  copy->state = self.state;
  copy->snapshots.reserve(self.snapshots.size());
  for (const Snapshot& snapshot : self.snapshots) {
    copy->snapshots.push_back({snapshot.length, snapshot.window.share(*self.pool, snapshot.length), snapshot.state});
  }
  copy->length = copy->kv_len = self.length;
  copy->update_window_len();
  return KvSequence(std::move(copy));
}

int32_t KvSequence::reusable_length(int32_t length) const {
  const Impl& self = *impl_;
  int32_t candidate = std::clamp(length, 0, self.length);
  // A few pages of a window at most, then one step a token down to the longest snapshot: only lengths are compared.
  while (!self.can_truncate(candidate)) --candidate;
  return candidate;
}

void KvSequence::keep_snapshot() {
  Impl& self = *impl_;
  if (self.is_paged_only() || self.length == 0 || self.find_snapshot(self.length) != nullptr) return;
  if (self.snapshots.size() >= static_cast<size_t>(self.pool->config().max_snapshots)) {
    self.snapshots.front().window.release(*self.pool);
    self.snapshots.erase(self.snapshots.begin());
  }
  self.snapshots.push_back({self.length, self.window.share(*self.pool, self.length), self.state});
}

Status KvSequence::truncate(int32_t new_length) {
  Impl& self = *impl_;
  if (new_length < 0 || new_length > self.length || pending() != 0) {
    return Status::invalid_argument("KV cache: truncate: expected a length in 0.." + std::to_string(self.length) +
                                    " and no pending tokens, got " + std::to_string(new_length) + " with " +
                                    std::to_string(pending()) + " pending");
  }
  if (!self.can_truncate(new_length)) {
    return Status::invalid_argument(
        "KV cache: truncate: window and recurrent layers can go back to snapshots only; the longest length that works is " +
        std::to_string(reusable_length(new_length)) + ", got " + std::to_string(new_length) +
        "; truncate to that and append the tokens after it again");
  }
  if (new_length == 0) {
    self.window.release(*self.pool);
    self.state = nullptr;
  } else if (new_length < self.length && !self.is_paged_only()) {
    if (const Snapshot* snapshot = self.find_snapshot(new_length)) {
      PageRun window = snapshot->window.share(*self.pool, new_length);
      std::swap(self.window, window);
      window.release(*self.pool);
      self.state = snapshot->state;
    } else {
      self.window.shrink_to(*self.pool, new_length);
    }
  }
  self.forget_snapshots(new_length);
  self.length = self.kv_len = new_length;
  self.update_window_len();
  self.paged.shrink_to(*self.pool, new_length);
  // A shared page keeps what other sequences still need; the next append copies it and forgets the rest there.
  const int32_t tokens_in_last = new_length % self.page_size();
  const std::span<const int32_t> last = std::span(self.paged.table()).last(tokens_in_last > 0 ? 1 : 0);
  if (!last.empty() && !self.pool->group(CacheKind::paged).pages().any_shared(last)) {
    self.pool->keep_encoded(CacheKind::paged, last[0], tokens_in_last);
  }
  return {};
}

PagedKvView KvSequence::view(int32_t layer) const {
  Impl& self = *impl_;
  const KvCacheConfig& config = self.pool->config();
  const CacheKind kind = config.kind(layer);
  const PageGroup& group = self.pool->group(kind);
  const PageRun& run = self.run(kind);
  PagedKvView view;
  view.keys = group.keys(self.pool->slot(layer));
  view.values = group.values(self.pool->slot(layer));
  view.dtype = config.dtype;
  view.page_stride = group.page_stride();
  view.token_stride = config.head_dim;
  view.head_stride = group.head_stride();
  view.num_pages = group.pages().num_pages();
  view.page_size = config.page_size;
  view.num_kv_heads = config.num_kv_heads;
  view.head_dim = config.head_dim;
  view.page_table = run.table().data();
  view.max_pages_per_sequence = static_cast<int32_t>(run.table().size());
  view.kv_lens = kind == CacheKind::window ? &self.window_kv_len : &self.kv_len;
  return view;
}

std::byte* KvSequence::index_entry(int32_t index, int32_t layer, int32_t kv_head, int32_t block) const {
  const Impl& self = *impl_;
  const KvIndex& entries = self.pool->index(index);
  const int32_t page = self.paged.table()[block / entries.blocks_per_page];
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
  return self.pool->encoded(self.pool->index(index), layer, self.paged.table()[logical_page])
      .load(std::memory_order_acquire);
}

void KvSequence::set_encoded_tokens(int32_t index, int32_t layer, int32_t logical_page, int32_t num_tokens) {
  const Impl& self = *impl_;
  self.pool->encoded(self.pool->index(index), layer, self.paged.table()[logical_page])
      .store(num_tokens, std::memory_order_release);
}

std::unique_lock<std::mutex> KvSequence::lock_index(int32_t first_logical_page) const {
  const Impl& self = *impl_;
  const std::span<const int32_t> table = self.paged.table();
  const auto first = std::min(static_cast<size_t>(first_logical_page), table.size());
  if (!self.pool->group(CacheKind::paged).pages().any_shared(table.subspan(first))) return {};
  return std::unique_lock(self.pool->index_mutex());
}

}  // namespace rarefy
