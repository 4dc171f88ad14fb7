// PagePool: which pages are free, and how many sequences hold each of the others. Knows nothing of what a page contains.
// Free pages are handed out lowest id first, so that a prefill into a fresh pool is contiguous in memory. Thread-safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

namespace rarefy {

class PagePool {
 public:
  explicit PagePool(int32_t num_pages);

  int32_t num_pages() const { return static_cast<int32_t>(holders_.size()); }
  int32_t num_free() const;

  // What an append takes, decided and done under one lock.
  struct Taken {
    bool ok = false;
    bool copy_last = false;  // pages.front() replaces `last_page`, whose reference the caller still holds
    int32_t num_needed = 0, num_free = 0;
    std::vector<int32_t> pages;  // [num_needed] i32; ascending; each held once; empty unless ok
  };
  // Takes `num_new` pages, and one more when `last_page` (-1: none) is held by other sequences too. All or nothing.
  Taken take(int32_t num_new, int32_t last_page);

  void share(std::span<const int32_t> pages);             // one more holder each; pages: [num_pages] i32
  void release(std::span<const int32_t> pages);           // one holder less each; pages: [num_pages] i32
  bool any_shared(std::span<const int32_t> pages) const;  // pages: [num_pages] i32

 private:
  mutable std::mutex mutex_;
  std::vector<uint64_t> free_bits_;  // bit p % 64 of word p / 64: page p is free
  size_t first_word_ = 0;            // no word before this one has a free page
  int32_t num_free_ = 0;
  std::vector<int32_t> holders_;  // [num_pages] i32; sequences that hold a page
};

}  // namespace rarefy
