// UTF-8: checking, stepping through, and replacing what is malformed. Free functions without state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace rarefy::model::tokenizer {

inline constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

// What starts at text[0]: a whole character, the beginning of one that the text cuts off, or bytes that start none.
struct Utf8Step {
  enum class Kind { character, cut_off, malformed } kind;
  std::size_t num_bytes;    // of the character; of the longest valid beginning (at least 1) otherwise
  uint32_t code_point = 0;  // of a character
};

// The same for a text whose first byte is not ASCII.
Utf8Step utf8_step_beyond_ascii(std::string_view text);

// Pre: text is not empty.
inline Utf8Step utf8_step(std::string_view text) {
  const auto lead = static_cast<uint8_t>(text[0]);
  return lead < 0x80 ? Utf8Step{Utf8Step::Kind::character, 1, lead} : utf8_step_beyond_ascii(text);
}

// Where the last character of `text` starts. Pre: text is UTF-8 and not empty.
std::size_t last_character(std::string_view text);

// Offset of the first byte that is not part of a character.
std::optional<std::size_t> first_malformed_byte(std::string_view text);

void append_utf8(uint32_t code_point, std::string& out);

// Moves all that is decided from `pending` to `out`: characters as they are, each malformed sequence as U+FFFD (one per longest
// valid beginning, the practice of the Unicode standard). A cut-off character stays in `pending` unless `at_end`.
void move_complete_characters(std::string& pending, std::string& out, bool at_end);

}  // namespace rarefy::model::tokenizer
