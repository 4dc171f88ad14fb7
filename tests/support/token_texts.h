// The texts of tests/golden/token_texts.py, made alike, so that only hashes of what `tokenizers` does with them are stored.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rarefy::test {

class TokenTexts {
 public:
  // `fragments` is tests/golden/tokenizers/fragments.json; `added` the contents of the added tokens of a tokenizer, by id.
  TokenTexts(const nlohmann::json& fragments, std::vector<std::string> added);

  std::string random_text(uint64_t index) const;
  // A megabyte each, on one line.
  std::vector<std::string> long_texts() const;

 private:
  class Random;
  std::string random_added(Random& random) const;
  std::string random_characters(Random& random) const;

  std::vector<std::vector<std::string>> pools_;
  std::vector<std::pair<uint32_t, uint32_t>> ranges_;  // of code points; the last is excluded
  std::vector<std::string> added_;
};

// CRC-32 of parts, with a byte 255 after each; ids count as 32-bit words, low byte first.
class PartsHash {
 public:
  void add(std::string_view text);
  void add(const std::vector<int32_t>& ids);  // ids [any] i32
  uint32_t value() const { return ~state_; }

 private:
  void add_byte(uint8_t byte);
  uint32_t state_ = ~uint32_t{0};
};

}  // namespace rarefy::test
