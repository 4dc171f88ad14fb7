#include "model/tokenizer/byte_level.h"

#include <array>

#include "model/tokenizer/utf8.h"

namespace rarefy::model::tokenizer {
namespace {

constexpr uint32_t kNumCharacters = 256 + 68;

struct Alphabet {
  std::array<uint16_t, 256> character{};
  std::array<int16_t, kNumCharacters> byte{};  // -1: stands for no byte
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  for (int16_t& byte : alphabet.byte) byte = -1;
  uint16_t next = 256;
  for (uint16_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    const uint16_t character = printable ? b : next++;
    alphabet.character[b] = character;
    alphabet.byte[character] = static_cast<int16_t>(b);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

void append_byte_characters(std::string_view text, std::string& out) {
  for (const char c : text) append_utf8(kAlphabet.character[static_cast<uint8_t>(c)], out);
}

void append_bytes_of_token(std::string_view token, std::string& out) {
  const std::size_t start = out.size();
  for (std::size_t i = 0; i < token.size();) {
    const Utf8Step step = utf8_step(token.substr(i));
    const bool known =
        step.kind == Utf8Step::Kind::character && step.code_point < kNumCharacters && kAlphabet.byte[step.code_point] >= 0;
    if (!known) {
      out.resize(start);
      out.append(token);
      return;
    }
    out.push_back(static_cast<char>(kAlphabet.byte[step.code_point]));
    i += step.num_bytes;
  }
}

}  // namespace rarefy::model::tokenizer
