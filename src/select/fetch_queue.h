// FetchQueue: memory that will be read soon, fetched into the L2 cache a little at a time while something else is computed.
// Belongs to one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace rarefy {

class FetchQueue {
 public:
  void clear() { items_.clear(), next_ = 0, per_turn_ = 0; }
  void add(const void* memory, int32_t bytes) {  // not a tensor: any memory
    items_.push_back({static_cast<const std::byte*>(memory), bytes});
  }
  // Spreads what was added evenly over so many calls of turn().
  void start(int32_t num_turns) {
    const auto turns = static_cast<size_t>(num_turns > 0 ? num_turns : 1);
    per_turn_ = (items_.size() + turns - 1) / turns;
  }
  void turn() {
    constexpr int kIntoL2 = 2;
    for (size_t i = 0; i < per_turn_ && next_ < items_.size(); ++i, ++next_) {
      const Item& item = items_[next_];
      for (int32_t byte = 0; byte < item.bytes; byte += 64) __builtin_prefetch(item.memory + byte, 0, kIntoL2);
    }
  }

 private:
  struct Item {
    const std::byte* memory;  // [bytes] bytes
    int32_t bytes;
  };
  std::vector<Item> items_;
  size_t next_ = 0, per_turn_ = 0;
};

}  // namespace rarefy
