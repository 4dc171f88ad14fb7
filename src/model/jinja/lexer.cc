#include "model/jinja/lexer.h"

#include <algorithm>
#include <charconv>

#include "model/jinja/budget.h"
#include "model/jinja/characters.h"
#include "model/jinja/string_literal.h"

namespace rarefy::model::jinja {
namespace {

bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_decimal(char c) { return c >= '0' && c <= '9'; }

// One line ending for all, and none at the very end.
std::string normalized(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    const bool is_return = source[i] == '\r';
    if (is_return && i + 1 < source.size() && source[i + 1] == '\n') continue;
    text += is_return ? '\n' : source[i];
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : text_(normalized(source)) {}

  std::vector<Token> run() {
    while (position_ < text_.size()) read_data();
    push(Token::Type::end);
    return std::move(tokens_);
  }

 private:
  enum class Tag { output, block, comment, raw };

  [[noreturn]] void refuse(std::string message) const {
    throw TemplateError{StatusCode::invalid_argument, std::move(message), line_};
  }
  std::string_view rest() const { return std::string_view(text_).substr(position_); }
  void advance(std::size_t num_bytes) {
    line_ += static_cast<int32_t>(std::count(text_.begin() + static_cast<std::ptrdiff_t>(position_),
                                             text_.begin() + static_cast<std::ptrdiff_t>(position_ + num_bytes), '\n'));
    position_ += num_bytes;
  }
  void skip_space() { advance(rest().size() - strip_left(rest()).size()); }
  Token& push(Token::Type type) {
    Token token;
    token.type = type;
    token.line = line_;
    tokens_.push_back(std::move(token));
    return tokens_.back();
  }

  // Text up to the next tag, then the tag.
  void read_data();
  // The tag's end sign with its white space control; false when something else stands here.
  bool read_tag_end(std::string_view end, bool trims_newline);
  void read_comment();
  void read_raw();
  void read_code(Token::Type end_type, std::string_view end, bool trims_newline);
  void read_token();
  void read_number();
  void push_data(std::string_view data, char sign, bool can_strip_line);
  // Length of `{% raw %}` or `{% endraw %}` at `from` up to its end sign, or 0.
  std::size_t raw_tag_length(std::size_t from, std::string_view name) const;

  std::string text_;
  std::size_t position_ = 0;
  int32_t line_ = 1;
  bool line_starting_ = true;  // nothing but tags since the last line ending
  std::vector<char> open_;     // brackets
  std::vector<Token> tokens_;
};

std::size_t Lexer::raw_tag_length(std::size_t from, std::string_view name) const {
  std::string_view tag = std::string_view(text_).substr(from);
  if (!tag.starts_with("{%")) return 0;
  const std::size_t size = tag.size();
  tag.remove_prefix(2);
  if (tag.starts_with('-') || tag.starts_with('+')) tag.remove_prefix(1);
  tag = strip_left(tag);
  if (!tag.starts_with(name)) return 0;
  tag = strip_left(tag.substr(name.size()));
  if (!tag.starts_with("%}") && !tag.starts_with("-%}") && !(name == "endraw" && tag.starts_with("+%}"))) return 0;
  return size - tag.size();
}

void Lexer::push_data(std::string_view data, char sign, bool can_strip_line) {
  std::string_view kept = data;
  if (sign == '-') {
    kept = strip_right(data);
  } else if (sign != '+' && can_strip_line) {
    const std::size_t line_begin = data.rfind('\n') == std::string_view::npos ? 0 : data.rfind('\n') + 1;
    const std::string_view indent = data.substr(line_begin);
    if ((line_begin > 0 || line_starting_) && strip_left(indent).empty()) kept = data.substr(0, line_begin);
  }
  if (!kept.empty()) push(Token::Type::data).text = kept;
  advance(data.size());
}

void Lexer::read_data() {
  std::size_t tag_begin = position_;
  Tag tag = Tag::output;
  for (;; ++tag_begin) {
    tag_begin = text_.find('{', tag_begin);
    if (tag_begin == std::string::npos || tag_begin + 1 >= text_.size()) {
      push(Token::Type::data).text = rest();
      advance(rest().size());
      return;
    }
    const char second = text_[tag_begin + 1];
    if (second != '{' && second != '%' && second != '#') continue;
    tag = second == '{' ? Tag::output : second == '%' ? Tag::block : Tag::comment;
    if (raw_tag_length(tag_begin, "raw") > 0) tag = Tag::raw;
    break;
  }
  const char sign = tag_begin + 2 < text_.size() ? text_[tag_begin + 2] : '\0';
  push_data(rest().substr(0, tag_begin - position_), sign, tag != Tag::output);
  if (tag == Tag::raw) return read_raw();
  if (tag == Tag::output) push(Token::Type::output_begin);
  if (tag == Tag::block) push(Token::Type::block_begin);
  advance(sign == '-' || sign == '+' ? 3 : 2);
  if (tag == Tag::output) read_code(Token::Type::output_end, "}}", false);
  if (tag == Tag::block) read_code(Token::Type::block_end, "%}", true);
  if (tag == Tag::comment) read_comment();
}

bool Lexer::read_tag_end(std::string_view end, bool trims_newline) {
  const std::size_t begin = position_;
  const std::string_view here = rest();
  if (here.starts_with('-') && here.substr(1).starts_with(end)) {
    advance(1 + end.size());
    skip_space();
  } else if (trims_newline && here.starts_with('+') && here.substr(1).starts_with(end)) {
    advance(1 + end.size());
  } else if (here.starts_with(end)) {
    advance(end.size());
    if (trims_newline && rest().starts_with('\n')) advance(1);
  } else {
    return false;
  }
  line_starting_ = position_ > begin && text_[position_ - 1] == '\n';
  return true;
}

void Lexer::read_comment() {
  const std::size_t end = text_.find("#}", position_);
  if (end == std::string::npos) refuse("expected #} at the end of a comment, got none");
  const bool has_sign = end > position_ && (text_[end - 1] == '-' || text_[end - 1] == '+');
  advance(end - position_ - (has_sign ? 1 : 0));
  read_tag_end("#}", true);
}

void Lexer::read_raw() {
  advance(raw_tag_length(position_, "raw"));
  if (rest().starts_with('-')) {
    advance(3);
    skip_space();
  } else {
    advance(2);
  }
  line_starting_ = text_[position_ - 1] == '\n';
  for (std::size_t end = position_;; ++end) {
    end = text_.find("{%", end);
    if (end == std::string::npos) refuse("expected {% endraw %} at the end of a raw block, got none");
    const std::size_t length = raw_tag_length(end, "endraw");
    if (length == 0) continue;
    push_data(rest().substr(0, end - position_), text_[end + 2], true);
    advance(length);
    read_tag_end("%}", true);
    return;
  }
}

void Lexer::read_code(Token::Type end_type, std::string_view end, bool trims_newline) {
  while (true) {
    skip_space();
    if (position_ >= text_.size())
      refuse("expected " + std::string(end) + " at the end of a tag, got the end of the template");
    const int32_t line = line_;
    if (open_.empty() && read_tag_end(end, trims_newline)) {
      push(end_type).line = line;
      return;
    }
    read_token();
  }
}

void Lexer::read_number() {
  const std::string_view here = rest();
  // Digits with single underscores between them, from `begin`.
  const auto digits_end = [&](std::size_t begin) {
    std::size_t end = begin;
    while (end < here.size() && (is_decimal(here[end]) || (here[end] == '_' && end > begin && end + 1 < here.size() &&
                                                           is_decimal(here[end - 1]) && is_decimal(here[end + 1])))) {
      ++end;
    }
    return end;
  };
  const auto without_underscores = [](std::string_view digits) {
    std::string plain;
    std::copy_if(digits.begin(), digits.end(), std::back_inserter(plain), [](char c) { return c != '_'; });
    return plain;
  };
  const std::size_t whole_end = digits_end(0);
  std::size_t end = whole_end;
  if (end + 1 < here.size() && here[end] == '.' && is_decimal(here[end + 1])) end = digits_end(end + 1);
  if (end < here.size() && (here[end] == 'e' || here[end] == 'E')) {
    const std::size_t digits = end + 1 < here.size() && (here[end + 1] == '+' || here[end + 1] == '-') ? end + 2 : end + 1;
    if (digits < here.size() && is_decimal(here[digits])) end = digits_end(digits);
  }
  // After a dot stands an index: a.1.5 is (a.1).5
  const bool after_dot = position_ > 0 && text_[position_ - 1] == '.';
  if (end > whole_end && !after_dot) {
    const std::string plain = without_underscores(here.substr(0, end));
    Token& token = push(Token::Type::real);
    const auto [last, error] = std::from_chars(plain.data(), plain.data() + plain.size(), token.real);
    if (error != std::errc() || last != plain.data() + plain.size()) refuse("expected a number, got '" + plain + "'");
    advance(end);
    return;
  }
  const std::string plain = without_underscores(here.substr(0, whole_end));
  Token& token = push(Token::Type::integer);
  const auto [last, error] = std::from_chars(plain.data(), plain.data() + plain.size(), token.integer);
  if (error != std::errc() || last != plain.data() + plain.size()) {
    refuse("expected an integer of at most 64 bits, got '" + plain.substr(0, 40) + "'");
  }
  if (plain.size() > 1 && plain[0] == '0' && token.integer != 0)
    refuse("expected a number without leading zeros, got '" + plain + "'");
  advance(whole_end);
  if (position_ < text_.size() && (is_name_start(text_[position_]))) {
    refuse("expected a decimal number, got '" + plain + text_[position_] + "'");
  }
}

void Lexer::read_token() {
  const std::string_view here = rest();
  const char first = here[0];
  if (is_decimal(first)) return read_number();
  if (is_name_start(first)) {
    std::size_t end = 1;
    while (end < here.size() && (is_name_start(here[end]) || is_decimal(here[end]))) ++end;
    push(Token::Type::name).text = here.substr(0, end);
    return advance(end);
  }
  if (first == '\'' || first == '"') {
    std::size_t end = 1;
    while (end < here.size() && here[end] != first) end += here[end] == '\\' ? 2 : 1;
    if (end >= here.size()) refuse(std::string("expected ") + first + " at the end of a string, got none");
    std::string literal;
    try {
      literal = unescaped(here.substr(1, end - 1));
    } catch (TemplateError& error) {
      error.line = line_;
      throw;
    }
    push(Token::Type::string).text = std::move(literal);
    return advance(end + 1);
  }
  static constexpr std::string_view kSigns[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
                                                "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ","};
  for (const std::string_view sign : kSigns) {
    if (!here.starts_with(sign)) continue;
    if (sign == "{" || sign == "(" || sign == "[") open_.push_back(sign == "{" ? '}' : sign == "(" ? ')' : ']');
    if (sign == "}" || sign == ")" || sign == "]") {
      if (open_.empty()) refuse("expected the end of the tag, got '" + std::string(sign) + "'");
      if (open_.back() != sign[0]) {
        refuse(std::string("expected '") + open_.back() + "', got '" + std::string(sign) + "'");
      }
      open_.pop_back();
    }
    push(Token::Type::punctuation).text = sign;
    return advance(sign.size());
  }
  refuse("expected an expression, got '" + std::string(here.substr(0, character_bytes(first))) + "'");
}

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace rarefy::model::jinja
