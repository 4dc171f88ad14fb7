#include "model/tokenizer/utf8.h"

#include <cstring>

namespace rarefy::model::tokenizer {
namespace {

uint8_t byte_at(std::string_view text, std::size_t i) { return static_cast<uint8_t>(text[i]); }

// Bytes at the start of `text` that are ASCII, counted eight at a time.
std::size_t ascii_prefix(std::string_view text) {
  std::size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + i, 8);
    if (word & 0x8080808080808080u) break;
  }
  while (i < text.size() && byte_at(text, i) < 0x80) ++i;
  return i;
}

}  // namespace

Utf8Step utf8_step_beyond_ascii(std::string_view text) {
  using Kind = Utf8Step::Kind;
  const uint8_t lead = byte_at(text, 0);
  if (lead < 0xc2 || lead > 0xf4) return {Kind::malformed, 1};
  const std::size_t size = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  uint32_t code_point = lead & (0x7fu >> size);
  for (std::size_t i = 1; i < size; ++i) {
    if (i == text.size()) return {Kind::cut_off, i};
    const uint8_t byte = byte_at(text, i);
    // The second byte excludes overlong forms, surrogates and what lies above U+10FFFF.
    uint8_t low = 0x80, high = 0xbf;
    if (i == 1 && lead == 0xe0) low = 0xa0;
    if (i == 1 && lead == 0xed) high = 0x9f;
    if (i == 1 && lead == 0xf0) low = 0x90;
    if (i == 1 && lead == 0xf4) high = 0x8f;
    if (byte < low || byte > high) return {Kind::malformed, i};
    code_point = code_point << 6 | (byte & 0x3fu);
  }
  return {Kind::character, size, code_point};
}

std::size_t last_character(std::string_view text) {
  std::size_t start = text.size() - 1;
  while (start > 0 && (byte_at(text, start) & 0xc0) == 0x80) --start;
  return start;
}

std::optional<std::size_t> first_malformed_byte(std::string_view text) {
  std::size_t i = ascii_prefix(text);
  while (i < text.size()) {
    const Utf8Step step = utf8_step(text.substr(i));
    if (step.kind != Utf8Step::Kind::character) return i;
    i += step.num_bytes;
    i += ascii_prefix(text.substr(i));
  }
  return std::nullopt;
}

void append_utf8(uint32_t code_point, std::string& out) {
  const auto put = [&out](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xc0 | code_point >> 6);
    put(0x80 | (code_point & 0x3f));
  } else if (code_point < 0x10000) {
    put(0xe0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3f));
    put(0x80 | (code_point & 0x3f));
  } else {
    put(0xf0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3f));
    put(0x80 | (code_point >> 6 & 0x3f));
    put(0x80 | (code_point & 0x3f));
  }
}

void move_complete_characters(std::string& pending, std::string& out, bool at_end) {
  const std::string_view text = pending;
  std::size_t i = 0;
  while (i < text.size()) {
    const Utf8Step step = utf8_step(text.substr(i));
    if (step.kind == Utf8Step::Kind::character) {
      out.append(text.substr(i, step.num_bytes));
    } else {
      if (step.kind == Utf8Step::Kind::cut_off && !at_end) break;
      out.append(kReplacement);
    }
    i += step.num_bytes;
  }
  pending.erase(0, i);
}

}  // namespace rarefy::model::tokenizer
