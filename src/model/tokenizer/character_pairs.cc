#include "model/tokenizer/character_pairs.h"

#include <algorithm>
#include <numeric>

namespace rarefy::model::tokenizer {

void CharacterPairs::finish() {
  std::vector<uint32_t> num_pairs(rows_.size()), order(rows_.size());
  pairs_.for_each([&](uint64_t pair, bool) {
    for (const auto c : {static_cast<uint32_t>(pair >> 32), static_cast<uint32_t>(pair)}) {
      if (c < rows_.size()) ++num_pairs[c];
    }
  });
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return num_pairs[a] > num_pairs[b]; });
  for (uint32_t row = 1; row < bits_.size() && num_pairs[order[row - 1]] > 0; ++row) {
    rows_[order[row - 1]] = static_cast<uint8_t>(row);
  }
  pairs_.for_each([&](uint64_t pair, bool) {
    const auto first = static_cast<uint32_t>(pair >> 32), second = static_cast<uint32_t>(pair);
    if (first >= rows_.size() || second >= rows_.size() || rows_[first] == 0 || rows_[second] == 0) return;
    bits_[rows_[first]][rows_[second] / 64] |= uint64_t{1} << rows_[second] % 64;
  });
}

}  // namespace rarefy::model::tokenizer
