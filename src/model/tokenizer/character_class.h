// Classes of characters that the patterns of published tokenizers are made of, in the Unicode version of the regular
// expressions of `tokenizers`. Free functions without state.
#pragma once

#include <array>
#include <cstdint>

namespace rarefy::model::tokenizer {

using CharacterClass = uint8_t;  // a set of the bits below; none for symbols, punctuation, controls and the unassigned
inline constexpr CharacterClass kLowerLetter = 1;  // Ll
inline constexpr CharacterClass kUpperLetter = 2;  // Lu, Lt
inline constexpr CharacterClass kOtherLetter = 4;  // Lm, Lo
inline constexpr CharacterClass kMark = 8;         // M
inline constexpr CharacterClass kNumber = 16;      // N
inline constexpr CharacterClass kSpace = 32;       // White_Space, newlines included
inline constexpr CharacterClass kNewline = 64;     // CR, LF
inline constexpr CharacterClass kEndOfText = 128;  // no character
inline constexpr CharacterClass kLetter = kLowerLetter | kUpperLetter | kOtherLetter;

constexpr bool is_white_space(uint32_t c) {
  return (c >= 0x9 && c <= 0xd) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
         c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

constexpr CharacterClass ascii_class(uint32_t c) {
  if (c == '\r' || c == '\n') return kSpace | kNewline;
  if (is_white_space(c)) return kSpace;
  if (c >= '0' && c <= '9') return kNumber;
  if (c >= 'a' && c <= 'z') return kLowerLetter;
  if (c >= 'A' && c <= 'Z') return kUpperLetter;
  return 0;
}

constexpr std::array<CharacterClass, 128> make_ascii_classes() {
  std::array<CharacterClass, 128> classes{};
  for (uint32_t c = 0; c < 128; ++c) classes[c] = ascii_class(c);
  return classes;
}
inline constexpr std::array<CharacterClass, 128> kAsciiClasses = make_ascii_classes();

// Any code point.
CharacterClass character_class(uint32_t code_point);

}  // namespace rarefy::model::tokenizer
