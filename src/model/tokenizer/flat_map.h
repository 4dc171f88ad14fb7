// FlatMap: 64-bit keys to small values in one array with open addressing, for tables that are filled while a file is read and
// then only looked up. Shareable between threads once filled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace rarefy::model::tokenizer {

template <typename Value>
class FlatMap {
 public:
  static constexpr uint64_t kNoKey = ~uint64_t{0};  // never a key

  void insert_or_assign(uint64_t key, Value value) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    Slot& slot = slots_[slot_of(key)];
    if (slot.key == kNoKey) ++size_;
    slot = {key, value};
  }
  // Null when there is none.
  const Value* find(uint64_t key) const {
    if (slots_.empty()) return nullptr;
    const Slot& slot = slots_[slot_of(key)];
    return slot.key == key ? &slot.value : nullptr;
  }
  // Calls `visit(key, value)` for every entry, in no order.
  template <typename Visit>
  void for_each(Visit visit) const {
    for (const Slot& slot : slots_) {
      if (slot.key != kNoKey) visit(slot.key, slot.value);
    }
  }

 private:
  struct Slot {
    uint64_t key = kNoKey;
    Value value{};
  };

  // Where the key is, or where it would go. Half of the slots are free, so that the search ends.
  std::size_t slot_of(uint64_t key) const {
    uint64_t hash = key * 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio: spreads the key over the high bits
    hash ^= hash >> 32;
    std::size_t i = hash & (slots_.size() - 1);
    while (slots_[i].key != key && slots_[i].key != kNoKey) i = (i + 1) & (slots_.size() - 1);
    return i;
  }
  void grow() {
    std::vector<Slot> old(slots_.empty() ? 16 : 2 * slots_.size());
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.key != kNoKey) slots_[slot_of(slot.key)] = slot;
    }
  }

  std::vector<Slot> slots_;  // a power of two of them
  std::size_t size_ = 0;
};

}  // namespace rarefy::model::tokenizer
