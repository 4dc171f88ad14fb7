// The expressions of the template language, by precedence: if-else, or, and, not, comparisons, + -, ~, * / // %, **, signs,
// then what stands behind an operand (attributes, items, calls), filters and tests.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "model/jinja/ast.h"
#include "model/jinja/token_stream.h"

namespace rarefy::model::jinja {

class ExpressionParser {
 public:
  ExpressionParser(TokenStream& tokens, std::vector<std::string>& names) : tokens_(tokens), names_(names) {}

  // One expression, or a tuple without parentheses. `with_condition` allows `a if b else c`.
  ExpressionPtr parse_tuple(bool with_condition = true, bool in_parentheses = false);
  ExpressionPtr parse_expression(bool with_condition = true);
  // `filter | filter ...` without an operand; null when there is none.
  ExpressionPtr parse_filters(ExpressionPtr operand);
  // A name, ns.member, or a tuple of these; members only when `with_members`.
  Target parse_target(bool with_members);
  int32_t name_id(const std::string& name);

 private:
  class Nesting;

  ExpressionPtr make(Expression::Kind kind, int32_t line) const;
  // Records how deep a node is now that its children are complete, and refuses too much.
  ExpressionPtr complete(ExpressionPtr node) const;
  ExpressionPtr binary(Operator op, int32_t line, ExpressionPtr left, ExpressionPtr right) const;

  ExpressionPtr parse_or();
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_comparison();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concat();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_unary(bool with_filters = true);
  ExpressionPtr parse_primary();
  ExpressionPtr parse_postfix(ExpressionPtr node);
  ExpressionPtr parse_subscript(ExpressionPtr node);
  ExpressionPtr parse_subscribed();
  ExpressionPtr parse_list();
  ExpressionPtr parse_dict();
  ExpressionPtr parse_filter(ExpressionPtr operand);
  ExpressionPtr parse_test(ExpressionPtr operand);
  void parse_arguments(Expression& call);
  Target parse_one_target(bool with_members);

  TokenStream& tokens_;
  std::vector<std::string>& names_;
  std::map<std::string, int32_t> ids_;
  int32_t nesting_ = 0;
};

}  // namespace rarefy::model::jinja
