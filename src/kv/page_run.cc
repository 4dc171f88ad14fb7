#include "kv/page_run.h"

#include <algorithm>
#include <span>

namespace rarefy {
namespace {

int32_t pages_for(int32_t num_tokens, int32_t page_size) {
  return static_cast<int32_t>((int64_t{num_tokens} + page_size - 1) / page_size);
}

}  // namespace

Status PageRun::grow(KvPool& pool, int32_t length, int32_t num_tokens) {
  const int32_t page_size = pool.config().page_size;
  const int32_t tokens_in_last = length % page_size;
  const int32_t last_page = tokens_in_last > 0 ? table_.back() : -1;
  const int32_t num_new = pages_for(length + num_tokens, page_size) - first_page_ - static_cast<int32_t>(table_.size());
  PagePool& pages = pool.group(kind_).pages();
  const PagePool::Taken taken = pages.take(num_new, last_page);
  if (!taken.ok) {
    return Status::resource_exhausted(
        "KV cache: no room for " + std::to_string(num_tokens) + " more tokens: " + std::to_string(taken.num_needed) +
        " pages needed, " + std::to_string(taken.num_free) + " of " + std::to_string(pages.num_pages()) + " free (" +
        std::to_string(page_size) +
        " tokens a page); release or truncate sequences, or create the cache with a larger max_tokens");
  }
  for (const int32_t page : taken.pages) pool.keep_encoded(kind_, page, 0);
  std::span<const int32_t> fresh(taken.pages);
  if (taken.copy_last) {
    pool.copy_page(kind_, last_page, fresh.front(), tokens_in_last);
    pages.release({&last_page, 1});  // after the copy: its last holder may write to it from now on
    table_.back() = fresh.front();
    fresh = fresh.subspan(1);
  }
  // The page is ours alone by now. Its entries may cover tokens that were truncated or aborted.
  if (last_page >= 0) pool.keep_encoded(kind_, table_.back(), tokens_in_last);
  table_.insert(table_.end(), fresh.begin(), fresh.end());
  return {};
}

void PageRun::shrink_to(KvPool& pool, int32_t length) {
  const int32_t needed = std::max(0, pages_for(length, pool.config().page_size) - first_page_);
  if (static_cast<size_t>(needed) >= table_.size()) return;
  pool.group(kind_).pages().release(std::span(table_).subspan(static_cast<size_t>(needed)));
  table_.resize(static_cast<size_t>(needed));
}

void PageRun::drop_before(KvPool& pool, int32_t token) {
  const int32_t wanted = token / pool.config().page_size - first_page_;
  const int32_t count = std::min(wanted, static_cast<int32_t>(table_.size()));
  if (count <= 0) return;
  pool.group(kind_).pages().release(std::span(table_).first(static_cast<size_t>(count)));
  table_.erase(table_.begin(), table_.begin() + count);
  first_page_ += count;
}

PageRun PageRun::share(KvPool& pool, int32_t length) const {
  PageRun copy(kind_);
  copy.first_page_ = first_page_;
  const int32_t needed = std::max(0, pages_for(length, pool.config().page_size) - first_page_);
  copy.table_.assign(table_.begin(), table_.begin() + std::min(needed, static_cast<int32_t>(table_.size())));
  pool.group(kind_).pages().share(copy.table_);
  return copy;
}

void PageRun::release(KvPool& pool) {
  pool.group(kind_).pages().release(table_);
  table_.clear();
  first_page_ = 0;
}

}  // namespace rarefy
