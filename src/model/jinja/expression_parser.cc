#include "model/jinja/expression_parser.h"

#include <algorithm>
#include <optional>

#include "model/jinja/filters.h"
#include "model/jinja/tests.h"

namespace rarefy::model::jinja {
namespace {

using Type = Token::Type;

constexpr int32_t kMaxNesting = 100;  // published templates stay below 10

std::optional<Operator> find_operator(const Token& token, std::initializer_list<std::pair<const char*, Operator>> table) {
  for (const auto& [sign, op] : table) {
    if (token.is_sign(sign)) return op;
  }
  return {};
}

bool ends_tuple(const Token& token) {
  return token.type == Type::output_end || token.type == Type::block_end || token.is_sign(")") || token.is_name("in") ||
         token.is_name("recursive");
}

}  // namespace

class ExpressionParser::Nesting {
 public:
  explicit Nesting(ExpressionParser& parser) : parser_(parser) {
    if (++parser_.nesting_ > kMaxNesting) {
      --parser_.nesting_;
      parser_.tokens_.refuse("expected expressions of at most " + std::to_string(kMaxNesting) + " levels, got more",
                             StatusCode::resource_exhausted);
    }
  }
  ~Nesting() { --parser_.nesting_; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

 private:
  ExpressionParser& parser_;
};

int32_t ExpressionParser::name_id(const std::string& name) {
  const auto [entry, is_new] = ids_.emplace(name, static_cast<int32_t>(names_.size()));
  if (is_new) names_.push_back(name);
  return entry->second;
}

ExpressionPtr ExpressionParser::make(Expression::Kind kind, int32_t line) const {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->line = line;
  return node;
}

ExpressionPtr ExpressionParser::complete(ExpressionPtr node) const {
  int32_t depth = 0;
  for (const ExpressionPtr& child : node->children) depth = std::max(depth, child != nullptr ? child->depth : 0);
  for (const auto& [name, child] : node->keywords) depth = std::max(depth, child->depth);
  node->depth = depth + 1;
  if (node->depth > kMaxNesting) {
    tokens_.refuse("expected expressions of at most " + std::to_string(kMaxNesting) + " levels, got more",
                   StatusCode::resource_exhausted);
  }
  return node;
}

ExpressionPtr ExpressionParser::binary(Operator op, int32_t line, ExpressionPtr left, ExpressionPtr right) const {
  ExpressionPtr node = make(Expression::Kind::binary, line);
  node->operators.push_back(op);
  node->children.push_back(std::move(left));
  node->children.push_back(std::move(right));
  return complete(std::move(node));
}

ExpressionPtr ExpressionParser::parse_tuple(bool with_condition, bool in_parentheses) {
  const int32_t line = tokens_.current().line;
  ExpressionPtr tuple = make(Expression::Kind::tuple, line);
  bool has_comma = false;
  while (true) {
    if (ends_tuple(tokens_.current())) break;
    tuple->children.push_back(parse_expression(with_condition));
    if (!tokens_.skip_sign(",")) break;
    has_comma = true;
  }
  if (!has_comma && tuple->children.size() == 1) return std::move(tuple->children[0]);
  if (tuple->children.empty() && !in_parentheses) tokens_.unexpected("an expression");
  return complete(std::move(tuple));
}

ExpressionPtr ExpressionParser::parse_expression(bool with_condition) {
  const Nesting nesting(*this);
  if (!with_condition) return parse_or();
  ExpressionPtr value = parse_or();
  while (tokens_.current().is_name("if")) {
    ExpressionPtr node = make(Expression::Kind::conditional, tokens_.next().line);
    node->children.push_back(parse_or());
    node->children.push_back(std::move(value));
    if (tokens_.skip_name("else")) node->children.push_back(parse_expression());
    value = complete(std::move(node));
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_or() {
  ExpressionPtr left = parse_and();
  if (!tokens_.current().is_name("or")) return left;
  ExpressionPtr node = make(Expression::Kind::logical_or, tokens_.current().line);
  node->children.push_back(std::move(left));
  while (tokens_.skip_name("or")) node->children.push_back(parse_and());
  return complete(std::move(node));
}

ExpressionPtr ExpressionParser::parse_and() {
  ExpressionPtr left = parse_not();
  if (!tokens_.current().is_name("and")) return left;
  ExpressionPtr node = make(Expression::Kind::logical_and, tokens_.current().line);
  node->children.push_back(std::move(left));
  while (tokens_.skip_name("and")) node->children.push_back(parse_not());
  return complete(std::move(node));
}

ExpressionPtr ExpressionParser::parse_not() {
  if (!tokens_.current().is_name("not")) return parse_comparison();
  const Nesting nesting(*this);
  ExpressionPtr node = make(Expression::Kind::logical_not, tokens_.next().line);
  node->children.push_back(parse_not());
  return complete(std::move(node));
}

ExpressionPtr ExpressionParser::parse_comparison() {
  ExpressionPtr left = parse_sum();
  ExpressionPtr node;
  while (true) {
    const Token& token = tokens_.current();
    auto op = find_operator(token, {{"==", Operator::eq},
                                    {"!=", Operator::ne},
                                    {"<=", Operator::le},
                                    {"<", Operator::lt},
                                    {">=", Operator::ge},
                                    {">", Operator::gt}});
    if (token.is_name("in")) op = Operator::in;
    if (token.is_name("not") && tokens_.look_ahead().is_name("in")) op = Operator::not_in;
    if (!op) break;
    if (node == nullptr) {
      node = make(Expression::Kind::compare, token.line);
      node->children.push_back(std::move(left));
    }
    if (*op == Operator::not_in) tokens_.next();
    tokens_.next();
    node->operators.push_back(*op);
    node->children.push_back(parse_sum());
  }
  return node == nullptr ? std::move(left) : complete(std::move(node));
}

ExpressionPtr ExpressionParser::parse_sum() {
  ExpressionPtr left = parse_concat();
  while (const auto op = find_operator(tokens_.current(), {{"+", Operator::add}, {"-", Operator::subtract}})) {
    const int32_t line = tokens_.next().line;
    left = binary(*op, line, std::move(left), parse_concat());
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_concat() {
  ExpressionPtr left = parse_product();
  if (!tokens_.current().is_sign("~")) return left;
  ExpressionPtr node = make(Expression::Kind::concat, tokens_.current().line);
  node->children.push_back(std::move(left));
  while (tokens_.skip_sign("~")) node->children.push_back(parse_product());
  return complete(std::move(node));
}

ExpressionPtr ExpressionParser::parse_product() {
  ExpressionPtr left = parse_power();
  while (
      const auto op = find_operator(
          tokens_.current(),
          {{"*", Operator::multiply}, {"//", Operator::floor_divide}, {"/", Operator::divide}, {"%", Operator::modulo}})) {
    const int32_t line = tokens_.next().line;
    left = binary(*op, line, std::move(left), parse_power());
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_power() {
  ExpressionPtr left = parse_unary();
  while (tokens_.current().is_sign("**")) {
    const int32_t line = tokens_.next().line;
    left = binary(Operator::power, line, std::move(left), parse_unary());
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_unary(bool with_filters) {
  ExpressionPtr node;
  if (const auto op = find_operator(tokens_.current(), {{"-", Operator::negate}, {"+", Operator::plus}})) {
    const Nesting nesting(*this);
    node = make(Expression::Kind::unary, tokens_.next().line);
    node->operators.push_back(*op);
    node->children.push_back(parse_unary(false));
    node = complete(std::move(node));
  } else {
    node = parse_primary();
  }
  node = parse_postfix(std::move(node));
  while (with_filters) {
    if (tokens_.current().is_sign("|")) {
      node = parse_filters(std::move(node));
    } else if (tokens_.current().is_name("is")) {
      node = parse_test(std::move(node));
    } else if (tokens_.current().is_sign("(")) {
      node = parse_postfix(std::move(node));
    } else {
      break;
    }
  }
  return node;
}

ExpressionPtr ExpressionParser::parse_primary() {
  const Token& token = tokens_.current();
  if (token.is_sign("[")) return parse_list();
  if (token.is_sign("{")) return parse_dict();
  if (tokens_.skip_sign("(")) {
    ExpressionPtr node = parse_tuple(true, true);
    tokens_.expect_sign(")");
    return node;
  }
  ExpressionPtr node = make(Expression::Kind::constant, token.line);
  if (token.type == Type::name) {
    tokens_.next();
    if (token.text == "true" || token.text == "True" || token.text == "false" || token.text == "False") {
      node->value = Value(token.text == "true" || token.text == "True");
    } else if (token.text == "none" || token.text == "None") {
      node->value = Value::None{};
    } else {
      node->kind = Expression::Kind::name;
      node->name = name_id(token.text);
    }
  } else if (token.type == Type::string) {
    std::string text;
    while (tokens_.current().type == Type::string) text += tokens_.next().text;
    node->value = make_string(nullptr, std::move(text));
  } else if (token.type == Type::integer) {
    node->value = Value(tokens_.next().integer);
  } else if (token.type == Type::real) {
    node->value = Value(tokens_.next().real);
  } else {
    tokens_.unexpected("an expression");
  }
  return node;
}

ExpressionPtr ExpressionParser::parse_list() {
  ExpressionPtr node = make(Expression::Kind::list, tokens_.next().line);
  while (!tokens_.current().is_sign("]")) {
    if (!node->children.empty()) tokens_.expect_sign(",");
    if (tokens_.current().is_sign("]")) break;
    node->children.push_back(parse_expression());
  }
  tokens_.expect_sign("]");
  return complete(std::move(node));
}

ExpressionPtr ExpressionParser::parse_dict() {
  ExpressionPtr node = make(Expression::Kind::dict, tokens_.next().line);
  while (!tokens_.current().is_sign("}")) {
    if (!node->children.empty()) tokens_.expect_sign(",");
    if (tokens_.current().is_sign("}")) break;
    node->children.push_back(parse_expression());
    tokens_.expect_sign(":");
    node->children.push_back(parse_expression());
  }
  tokens_.expect_sign("}");
  return complete(std::move(node));
}

ExpressionPtr ExpressionParser::parse_postfix(ExpressionPtr node) {
  while (true) {
    if (tokens_.current().is_sign(".") || tokens_.current().is_sign("[")) {
      node = parse_subscript(std::move(node));
    } else if (tokens_.current().is_sign("(")) {
      ExpressionPtr call = make(Expression::Kind::call, tokens_.current().line);
      call->children.push_back(std::move(node));
      parse_arguments(*call);
      node = complete(std::move(call));
    } else {
      return node;
    }
  }
}

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr object) {
  const Token sign = tokens_.next();
  ExpressionPtr node = make(Expression::Kind::item, sign.line);
  if (sign.is_sign(".")) {
    const Token& member = tokens_.next();
    if (member.type == Type::name) {
      node->kind = Expression::Kind::attribute;
      node->text = member.text;
      node->children.push_back(std::move(object));
    } else if (member.type == Type::integer) {
      node->children.push_back(std::move(object));
      node->children.push_back(make(Expression::Kind::constant, member.line));
      node->children[1]->value = Value(member.integer);
    } else {
      throw TemplateError{StatusCode::invalid_argument, "expected a name or a number after '.'", member.line};
    }
    return complete(std::move(node));
  }
  ExpressionPtr index = parse_subscribed();
  if (tokens_.current().is_sign(",")) tokens_.refuse("expected one index, got several", StatusCode::unsupported);
  tokens_.expect_sign("]");
  if (index->kind == Expression::Kind::slice && index->children[0] == nullptr) {
    index->children[0] = std::move(object);
    return complete(std::move(index));
  }
  node->children.push_back(std::move(object));
  node->children.push_back(std::move(index));
  return complete(std::move(node));
}

// An index, or a slice whose object is still missing.
ExpressionPtr ExpressionParser::parse_subscribed() {
  const int32_t line = tokens_.current().line;
  ExpressionPtr first;
  if (!tokens_.current().is_sign(":")) {
    first = parse_expression();
    if (!tokens_.current().is_sign(":")) return first;
  }
  ExpressionPtr slice = make(Expression::Kind::slice, line);
  slice->children.resize(4);
  slice->children[1] = std::move(first);
  for (std::size_t part = 2; part < 4 && tokens_.skip_sign(":"); ++part) {
    const Token& token = tokens_.current();
    if (!token.is_sign(":") && !token.is_sign("]") && !token.is_sign(",")) slice->children[part] = parse_expression();
  }
  return slice;
}

void ExpressionParser::parse_arguments(Expression& call) {
  tokens_.expect_sign("(");
  bool is_first = true;
  while (!tokens_.current().is_sign(")")) {
    if (!is_first) {
      tokens_.expect_sign(",");
      if (tokens_.current().is_sign(")")) break;
    }
    is_first = false;
    if (tokens_.current().is_sign("*") || tokens_.current().is_sign("**")) {
      tokens_.refuse("expected plain arguments, got * or **, which is not offered", StatusCode::unsupported);
    }
    if (tokens_.current().type == Type::name && tokens_.look_ahead().is_sign("=")) {
      std::string name = tokens_.next().text;
      tokens_.next();
      call.keywords.emplace_back(std::move(name), parse_expression());
    } else {
      if (!call.keywords.empty()) tokens_.refuse("expected arguments by position before those by name");
      call.children.push_back(parse_expression());
    }
  }
  tokens_.expect_sign(")");
}

ExpressionPtr ExpressionParser::parse_filters(ExpressionPtr operand) {
  while (tokens_.skip_sign("|")) operand = parse_filter(std::move(operand));
  return operand;
}

ExpressionPtr ExpressionParser::parse_filter(ExpressionPtr operand) {
  const Token& name = tokens_.expect(Type::name, "the name of a filter");
  ExpressionPtr node = make(Expression::Kind::filter, name.line);
  node->filter = find_filter(name.text);
  if (node->filter == nullptr) {
    throw TemplateError{StatusCode::unsupported, "expected a filter that is offered, got '" + name.text + "'", name.line};
  }
  node->children.push_back(std::move(operand));
  if (tokens_.current().is_sign("(")) parse_arguments(*node);
  return complete(std::move(node));
}

ExpressionPtr ExpressionParser::parse_test(ExpressionPtr operand) {
  tokens_.next();  // is
  const bool negated = tokens_.skip_name("not");
  const Token& name = tokens_.expect(Type::name, "the name of a test");
  ExpressionPtr node = make(Expression::Kind::test, name.line);
  node->test = find_test(name.text);
  if (node->test == nullptr) {
    throw TemplateError{StatusCode::unsupported, "expected a test that is offered, got '" + name.text + "'", name.line};
  }
  node->children.push_back(std::move(operand));
  const Token& token = tokens_.current();
  const bool starts_operand = token.type == Type::name || token.type == Type::string || token.type == Type::integer ||
                              token.type == Type::real || token.is_sign("[") || token.is_sign("{");
  if (token.is_sign("(")) {
    parse_arguments(*node);
  } else if (starts_operand && !token.is_name("else") && !token.is_name("or") && !token.is_name("and")) {
    if (token.is_name("is")) tokens_.refuse("expected one test, got several in a row");
    node->children.push_back(parse_postfix(parse_primary()));
  }
  node = complete(std::move(node));
  if (!negated) return node;
  ExpressionPtr inverse = make(Expression::Kind::logical_not, node->line);
  inverse->children.push_back(std::move(node));
  return complete(std::move(inverse));
}

Target ExpressionParser::parse_target(bool with_members) {
  Target tuple;
  tuple.kind = Target::Kind::tuple;
  bool has_comma = false;
  while (true) {
    const Token& token = tokens_.current();
    if (ends_tuple(token) || token.is_sign("=")) break;
    tuple.elements.push_back(parse_one_target(with_members));
    if (!tokens_.skip_sign(",")) break;
    has_comma = true;
  }
  if (tuple.elements.empty()) tokens_.unexpected("a name to assign to");
  if (has_comma) return tuple;
  Target single = std::move(tuple.elements[0]);
  return single;
}

Target ExpressionParser::parse_one_target(bool with_members) {
  const Nesting nesting(*this);
  if (tokens_.skip_sign("(")) {
    Target target = parse_target(with_members);
    tokens_.expect_sign(")");
    return target;
  }
  const Token& name = tokens_.expect(Type::name, "a name to assign to");
  for (const char* constant : {"true", "True", "false", "False", "none", "None"}) {
    if (name.text == constant) tokens_.refuse("expected a name to assign to, got '" + name.text + "'");
  }
  Target target;
  target.name = name_id(name.text);
  if (with_members && tokens_.skip_sign(".")) {
    target.kind = Target::Kind::attribute;
    target.text = tokens_.expect(Type::name, "the name of a member").text;
  }
  return target;
}

}  // namespace rarefy::model::jinja
