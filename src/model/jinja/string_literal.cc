#include "model/jinja/string_literal.h"

#include <algorithm>
#include <charconv>

#include "model/jinja/budget.h"
#include "model/tokenizer/utf8.h"

namespace rarefy::model::jinja {
namespace {

void append_code_point(uint32_t code_point, std::string_view escape, std::string& out) {
  if (code_point > 0x10ffff || (code_point >= 0xd800 && code_point <= 0xdfff)) {
    fail("expected the code of a character, got '\\" + std::string(escape) + "'");
  }
  tokenizer::append_utf8(code_point, out);
}

uint32_t parse_code(std::string_view digits, int base, std::string_view escape) {
  uint32_t code_point = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code_point, base);
  if (error != std::errc() || end != digits.data() + digits.size()) {
    fail("expected hexadecimal digits after a backslash, got '\\" + std::string(escape) + "'");
  }
  return code_point;
}

}  // namespace

std::string unescaped(std::string_view literal) {
  static constexpr std::string_view kLetters = "\n\\'\"abfnrtv";
  std::string text;
  for (std::size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] != '\\' || i + 1 == literal.size()) {
      text += literal[i];
      continue;
    }
    const char letter = literal[++i];
    const std::string_view escape = literal.substr(i, 9);
    if (letter == '\n') continue;  // the line goes on
    if (const std::size_t known = kLetters.find(letter); known != std::string_view::npos) {
      text += "\0\\'\"\a\b\f\n\r\t\v"[known];
      continue;
    }
    if (letter >= '0' && letter <= '7') {
      std::size_t count = 1;
      while (count < 3 && i + count < literal.size() && literal[i + count] >= '0' && literal[i + count] <= '7') ++count;
      append_code_point(parse_code(literal.substr(i, count), 8, escape), escape, text);
      i += count - 1;
    } else if (letter == 'x' || letter == 'u' || letter == 'U') {
      const std::size_t count = letter == 'x' ? 2 : letter == 'u' ? 4 : 8;
      if (literal.size() - i - 1 < count)
        fail("expected hexadecimal digits after a backslash, got '\\" + std::string(escape) + "'");
      append_code_point(parse_code(literal.substr(i + 1, count), 16, escape.substr(0, count + 1)),
                        escape.substr(0, count + 1), text);
      i += count;
    } else if (letter == 'N') {
      fail("expected a character by its code, got '\\N', which names one; that is not offered", StatusCode::unsupported);
    } else {
      text += '\\';
      text += letter;
    }
  }
  return text;
}

}  // namespace rarefy::model::jinja
