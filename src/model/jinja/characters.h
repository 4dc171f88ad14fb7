// Characters as Python's str sees them: code points in UTF-8 text that is known to be well-formed. Free functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace rarefy::model::jinja {

// Bytes of the character whose first byte this is.
inline std::size_t character_bytes(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}
uint32_t first_character(std::string_view text);  // Pre: text is not empty
std::size_t num_characters(std::string_view text);
// Byte offset of the character at `index`, or the size of the text past its end.
std::size_t byte_offset(std::string_view text, std::size_t index);

bool is_space(uint32_t c);       // str.isspace
bool is_line_break(uint32_t c);  // where str.splitlines cuts
bool is_printable(uint32_t c);   // str.isprintable
bool is_letter(uint32_t c);      // str.isalpha
bool is_digit(uint32_t c);       // str.isdecimal
bool is_upper(uint32_t c);
bool is_lower(uint32_t c);

// One character to one, but for the German sharp s; Python has some hundred further exceptions.
std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);

// Without the characters of `chars` at its ends; white space when `chars` is null.
std::string_view strip_left(std::string_view text, const std::string* chars = nullptr);
std::string_view strip_right(std::string_view text, const std::string* chars = nullptr);

// Calls visit(line) for the lines of str.splitlines, without their ends.
template <typename Visit>
void for_each_line(std::string_view text, const Visit& visit) {
  std::size_t begin = 0;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t size = character_bytes(text[i]);
    if (!is_line_break(first_character(text.substr(i)))) {
      i += size;
      continue;
    }
    visit(text.substr(begin, i - begin));
    i += text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n' ? 2 : size;
    begin = i;
  }
  if (begin < text.size()) visit(text.substr(begin));
}

}  // namespace rarefy::model::jinja
