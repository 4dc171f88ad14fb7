#include "token_texts.h"

#include <algorithm>
#include <array>

#include "model/tokenizer/utf8.h"

namespace rarefy::test {
namespace {

constexpr std::size_t kLongBytes = std::size_t{1} << 20;
constexpr std::string_view kLongUnits[] = {"a", " ", "A", "-", "1", "\xc3\xa9", "<", "\xcc\x81"};
constexpr uint64_t kNumLongRandom = 2;

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
    table[i] = value;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

}  // namespace

// SplitMix64.
class TokenTexts::Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t below(uint64_t bound) {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (z ^ z >> 31) % bound;
  }

 private:
  uint64_t state_;
};

TokenTexts::TokenTexts(const nlohmann::json& fragments, std::vector<std::string> added)
    : pools_(fragments.at("pools").get<std::vector<std::vector<std::string>>>()),
      ranges_(fragments.at("ranges").get<std::vector<std::pair<uint32_t, uint32_t>>>()),
      added_(std::move(added)) {}

std::string TokenTexts::random_characters(Random& random) const {
  std::string text;
  const uint64_t count = 1 + random.below(12);
  for (uint64_t i = 0; i < count; ++i) {
    const auto [low, high] = ranges_[random.below(ranges_.size())];
    model::tokenizer::append_utf8(low + static_cast<uint32_t>(random.below(high - low)), text);
  }
  return text;
}

std::string TokenTexts::random_added(Random& random) const {
  const std::string& token = added_[random.below(added_.size())];
  switch (random.below(6)) {
    case 0: return token.substr(0, model::tokenizer::last_character(token));
    case 1: return token + token;
    default: return token;
  }
}

std::string TokenTexts::random_text(uint64_t index) const {
  Random random(index);
  const uint64_t style = random.below(8);
  std::string text;
  const uint64_t num_parts = 1 + random.below(12);
  for (uint64_t i = 0; i < num_parts; ++i) {
    if (style == 0) {
      text += random_characters(random);
    } else if (!added_.empty() && random.below(6) == 0) {
      text += random_added(random);
    } else {
      const auto& pool = pools_[random.below(pools_.size())];
      text += pool[random.below(pool.size())];
    }
    if (style > 4 && random.below(3) > 0) text += ' ';
  }
  return text;
}

std::vector<std::string> TokenTexts::long_texts() const {
  std::vector<std::string> texts;
  for (const std::string_view unit : kLongUnits) {
    std::string& text = texts.emplace_back();
    for (std::size_t i = 0; i < kLongBytes / unit.size(); ++i) text += unit;
  }
  for (uint64_t number = 1; number <= kNumLongRandom; ++number) {
    std::string& text = texts.emplace_back();
    for (uint64_t index = 1000000 * number; text.size() < kLongBytes; ++index) text += random_text(index);
    std::replace_if(
        text.begin(), text.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  }
  return texts;
}

void PartsHash::add_byte(uint8_t byte) { state_ = state_ >> 8 ^ kCrcTable[(state_ ^ byte) & 0xff]; }

void PartsHash::add(std::string_view text) {
  for (const char c : text) add_byte(static_cast<uint8_t>(c));
  add_byte(255);
}

void PartsHash::add(const std::vector<int32_t>& ids) {
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) add_byte(static_cast<uint8_t>(static_cast<uint32_t>(id) >> shift));
  }
  add_byte(255);
}

}  // namespace rarefy::test
