// Template text to tokens: Jinja's delimiters, comments and raw blocks, with the white space control that `transformers` sets
// (trim_blocks, lstrip_blocks) and the signs in the delimiters. Throws TemplateError with the line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rarefy::model::jinja {

struct Token {
  enum class Type { data, block_begin, block_end, output_begin, output_end, name, string, integer, real, punctuation, end };
  Type type = Type::end;
  int32_t line = 1;
  std::string text = {};  // of data, names and strings (escapes resolved); the sign of punctuation
  int64_t integer = 0;
  double real = 0.0;

  bool is_name(std::string_view name) const { return type == Type::name && text == name; }
  bool is_sign(std::string_view sign) const { return type == Type::punctuation && text == sign; }
};

// The last token is Type::end.
std::vector<Token> tokenize(std::string_view source);

}  // namespace rarefy::model::jinja
