#include "model/jinja/characters.h"

#include <utf8proc.h>

#include <algorithm>

#include "model/tokenizer/utf8.h"

namespace rarefy::model::jinja {
namespace {

utf8proc_category_t category(uint32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

template <typename Map>
std::string map_characters(std::string_view text, const Map& map) {
  std::string result;
  result.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); i += character_bytes(text[i])) map(first_character(text.substr(i)), result);
  return result;
}

bool is_stripped(std::string_view character, const std::string* chars) {
  if (chars == nullptr && character.size() == 1)
    return character[0] == ' ' || is_space(static_cast<unsigned char>(character[0]));
  return chars == nullptr ? is_space(first_character(character)) : chars->find(character) != std::string::npos;
}

}  // namespace

uint32_t first_character(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[i])); };
  switch (character_bytes(text[0])) {
    case 1: return byte(0);
    case 2: return (byte(0) & 0x1f) << 6 | (byte(1) & 0x3f);
    case 3: return (byte(0) & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
    default: return (byte(0) & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
  }
}

std::size_t num_characters(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::size_t byte_offset(std::string_view text, std::size_t index) {
  std::size_t offset = 0;
  for (; index > 0 && offset < text.size(); --index) offset += character_bytes(text[offset]);
  return offset;
}

bool is_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool is_line_break(uint32_t c) {
  return (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

bool is_printable(uint32_t c) {
  if (c == ' ') return true;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS: return false;
    default: return true;
  }
}

bool is_letter(uint32_t c) {
  const utf8proc_category_t kind = category(c);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool is_digit(uint32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }
bool is_upper(uint32_t c) { return category(c) == UTF8PROC_CATEGORY_LU || category(c) == UTF8PROC_CATEGORY_LT; }
bool is_lower(uint32_t c) { return category(c) == UTF8PROC_CATEGORY_LL; }

std::string to_upper(std::string_view text) {
  return map_characters(text, [](uint32_t c, std::string& out) {
    if (c == 0xdf) {
      out += "SS";
    } else {
      tokenizer::append_utf8(static_cast<uint32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))), out);
    }
  });
}

std::string to_lower(std::string_view text) {
  return map_characters(text, [](uint32_t c, std::string& out) {
    tokenizer::append_utf8(static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
  });
}

std::string_view strip_left(std::string_view text, const std::string* chars) {
  while (!text.empty()) {
    const std::string_view first = text.substr(0, character_bytes(text[0]));
    if (!is_stripped(first, chars)) break;
    text.remove_prefix(first.size());
  }
  return text;
}

std::string_view strip_right(std::string_view text, const std::string* chars) {
  while (!text.empty()) {
    std::size_t begin = text.size() - 1;
    while (begin > 0 && (text[begin] & 0xc0) == 0x80) --begin;
    if (!is_stripped(text.substr(begin), chars)) break;
    text = text.substr(0, begin);
  }
  return text;
}

}  // namespace rarefy::model::jinja
