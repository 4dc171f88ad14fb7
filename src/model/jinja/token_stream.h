// The tokens of a template with a position, and the errors of the parser.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "model/jinja/budget.h"
#include "model/jinja/lexer.h"

namespace rarefy::model::jinja {

class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& current() const { return tokens_[position_]; }
  const Token& look_ahead() const { return tokens_[std::min(position_ + 1, tokens_.size() - 1)]; }
  const Token& next() {
    const Token& token = tokens_[position_];
    if (position_ + 1 < tokens_.size()) ++position_;
    return token;
  }
  bool skip_name(std::string_view name) { return current().is_name(name) ? (next(), true) : false; }
  bool skip_sign(std::string_view sign) { return current().is_sign(sign) ? (next(), true) : false; }
  void expect_sign(std::string_view sign) {
    if (!skip_sign(sign)) unexpected("'" + std::string(sign) + "'");
  }
  const Token& expect(Token::Type type, std::string_view what) {
    if (current().type != type) unexpected(what);
    return next();
  }

  [[noreturn]] void refuse(std::string message, StatusCode code = StatusCode::invalid_argument) const {
    throw TemplateError{code, std::move(message), current().line};
  }
  [[noreturn]] void unexpected(std::string_view expected) const {
    refuse("expected " + std::string(expected) + ", got " + describe(current()));
  }

 private:
  static std::string describe(const Token& token) {
    switch (token.type) {
      case Token::Type::data: return "text";
      case Token::Type::block_begin: return "'{%'";
      case Token::Type::block_end: return "'%}'";
      case Token::Type::output_begin: return "'{{'";
      case Token::Type::output_end: return "'}}'";
      case Token::Type::integer:
      case Token::Type::real: return "a number";
      case Token::Type::string: return "a string";
      case Token::Type::end: return "the end of the template";
      case Token::Type::name:
      case Token::Type::punctuation: break;
    }
    return "'" + token.text + "'";
  }

  std::vector<Token> tokens_;
  std::size_t position_ = 0;
};

}  // namespace rarefy::model::jinja
