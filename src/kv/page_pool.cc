#include "kv/page_pool.h"

#include <algorithm>
#include <bit>

namespace rarefy {

PagePool::PagePool(int32_t num_pages)
    : free_bits_((static_cast<size_t>(num_pages) + 63) / 64, ~uint64_t{0}),
      num_free_(num_pages),
      holders_(static_cast<size_t>(num_pages), 0) {
  if (num_pages % 64 != 0) free_bits_.back() = (uint64_t{1} << (num_pages % 64)) - 1;
}

int32_t PagePool::num_free() const {
  const std::lock_guard lock(mutex_);
  return num_free_;
}

PagePool::Taken PagePool::take(int32_t num_new, int32_t last_page) {
  const std::lock_guard lock(mutex_);
  Taken taken;
  taken.copy_last = last_page >= 0 && holders_[last_page] > 1;
  taken.num_needed = num_new + (taken.copy_last ? 1 : 0);
  taken.num_free = num_free_;
  if (taken.num_needed > num_free_) return taken;
  taken.ok = true;
  taken.pages.reserve(static_cast<size_t>(taken.num_needed));
  for (int32_t i = 0; i < taken.num_needed; ++i) {
    while (free_bits_[first_word_] == 0) ++first_word_;
    uint64_t& word = free_bits_[first_word_];
    const auto page = static_cast<int32_t>(first_word_ * 64) + std::countr_zero(word);
    word &= word - 1;
    holders_[page] = 1;
    taken.pages.push_back(page);
  }
  num_free_ -= taken.num_needed;
  return taken;
}

void PagePool::share(std::span<const int32_t> pages) {
  const std::lock_guard lock(mutex_);
  for (const int32_t page : pages) ++holders_[page];
}

void PagePool::release(std::span<const int32_t> pages) {
  const std::lock_guard lock(mutex_);
  for (const int32_t page : pages) {
    if (--holders_[page] > 0) continue;
    const auto word = static_cast<size_t>(page) / 64;
    free_bits_[word] |= uint64_t{1} << (page % 64);
    first_word_ = std::min(first_word_, word);
    ++num_free_;
  }
}

bool PagePool::any_shared(std::span<const int32_t> pages) const {
  const std::lock_guard lock(mutex_);
  return std::any_of(pages.begin(), pages.end(), [&](int32_t page) { return holders_[page] > 1; });
}

}  // namespace rarefy
