// CharacterPairs: which neighbouring characters a merge can ever join. Between two others a piece can be cut without changing
// its ids, because no merge looks across: that makes words of a document that is one piece. Immutable once filled.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "model/tokenizer/flat_map.h"

namespace rarefy::model::tokenizer {

class CharacterPairs {
 public:
  // A merge whose left token ends with `first` and whose right token starts with `second`.
  void add(uint32_t first, uint32_t second) { pairs_.insert_or_assign(key(first, second), true); }
  // Makes the table that answers quickly for the characters in most pairs. Call once, after the last `add`.
  void finish();

  bool has(uint32_t first, uint32_t second) const {
    if (first < rows_.size() && second < rows_.size() && rows_[first] != 0 && rows_[second] != 0) {
      return bits_[rows_[first]][rows_[second] / 64] >> rows_[second] % 64 & 1;
    }
    return pairs_.find(key(first, second)) != nullptr;
  }

 private:
  static uint64_t key(uint32_t first, uint32_t second) { return uint64_t{first} << 32 | second; }

  FlatMap<bool> pairs_;
  std::array<uint8_t, 0x3100> rows_{};               // 0: none
  std::array<std::array<uint64_t, 4>, 256> bits_{};  // of a row and a column
};

}  // namespace rarefy::model::tokenizer
