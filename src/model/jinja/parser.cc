#include "model/jinja/parser.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/jinja/expression_parser.h"

namespace rarefy::model::jinja {
namespace {

using Type = Token::Type;
using Names = std::initializer_list<std::string_view>;

constexpr int32_t kMaxBlocks = 50;

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)), expressions_(tokens_, tree_.names) {}

  Tree run() {
    tree_.body = parse_body({});
    return std::move(tree_);
  }

 private:
  // Statements up to a block tag with one of these names, whose name has been read then.
  Body parse_body(Names ends);
  // The same, and the end of that tag.
  Body parse_block_body(std::string_view end) {
    end_tag();
    Body body = parse_body({end});
    end_tag();
    return body;
  }
  // The same for blocks that a loop around them cannot be left from.
  Body parse_scope_body(std::string_view end) {
    ++scope_depth_;
    const int32_t loops = std::exchange(loop_depth_, 0);
    Body body = parse_block_body(end);
    loop_depth_ = loops;
    --scope_depth_;
    return body;
  }
  void end_tag() { tokens_.expect(Type::block_end, "'%}'"); }
  std::unique_ptr<Statement> make(Statement::Kind kind, int32_t line) const {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = line;
    return statement;
  }

  std::unique_ptr<Statement> parse_tag();
  std::unique_ptr<Statement> parse_set(int32_t line);
  std::unique_ptr<Statement> parse_if(int32_t line);
  std::unique_ptr<Statement> parse_for(int32_t line);
  std::unique_ptr<Statement> parse_macro(int32_t line);
  std::unique_ptr<Statement> parse_with(int32_t line);

  Tree tree_;
  TokenStream tokens_;
  ExpressionParser expressions_;
  int32_t block_depth_ = 0;
  int32_t loop_depth_ = 0;   // of the macro or template that is being read
  int32_t scope_depth_ = 0;  // blocks with variables of their own around this place
  std::string last_end_;     // which of its ends parse_body found
};

Body Parser::parse_body(Names ends) {
  Body body;
  if (++block_depth_ > kMaxBlocks) {
    tokens_.refuse("expected blocks of at most " + std::to_string(kMaxBlocks) + " levels, got more",
                   StatusCode::resource_exhausted);
  }
  while (true) {
    const Token& token = tokens_.next();
    if (token.type == Type::data) {
      body.push_back(make(Statement::Kind::text, token.line));
      body.back()->text = token.text;
    } else if (token.type == Type::output_begin) {
      body.push_back(make(Statement::Kind::output, token.line));
      body.back()->expression = expressions_.parse_tuple();
      tokens_.expect(Type::output_end, "'}}'");
    } else if (token.type == Type::block_begin) {
      const Token& name = tokens_.current();
      if (name.type != Type::name) tokens_.unexpected("the name of a block");
      if (std::find(ends.begin(), ends.end(), name.text) != ends.end()) {
        last_end_ = tokens_.next().text;
        --block_depth_;
        return body;
      }
      body.push_back(parse_tag());
    } else {
      if (ends.size() == 0) break;
      std::string expected;
      for (const std::string_view end : ends) expected += fmt::format("{}{{% {} %}}", expected.empty() ? "" : " or ", end);
      tokens_.refuse("expected " + expected + ", got the end of the template");
    }
  }
  --block_depth_;
  return body;
}

std::unique_ptr<Statement> Parser::parse_tag() {
  const Token name = tokens_.next();
  const int32_t line = name.line;
  if (name.text == "set") return parse_set(line);
  if (name.text == "if") return parse_if(line);
  if (name.text == "for") return parse_for(line);
  if (name.text == "macro") return parse_macro(line);
  if (name.text == "with") return parse_with(line);
  if (name.text == "generation") {
    auto statement = make(Statement::Kind::scope, line);
    statement->body = parse_scope_body("endgeneration");
    return statement;
  }
  if (name.text == "break" || name.text == "continue") {
    if (loop_depth_ == 0) {
      throw TemplateError{StatusCode::invalid_argument, fmt::format("expected {{% {} %}} inside a loop only", name.text),
                          line};
    }
    end_tag();
    return make(name.text == "break" ? Statement::Kind::break_loop : Statement::Kind::continue_loop, line);
  }
  for (const char* known :
       {"autoescape", "block", "call", "do", "extends", "filter", "from", "import", "include", "print"}) {
    if (name.text == known) {
      throw TemplateError{StatusCode::unsupported, fmt::format("{{% {} %}} is not offered in chat templates", name.text),
                          line};
    }
  }
  throw TemplateError{StatusCode::invalid_argument,
                      "expected set, if, for, macro, with, break, continue or generation, got '" + name.text + "'", line};
}

std::unique_ptr<Statement> Parser::parse_set(int32_t line) {
  auto statement = make(Statement::Kind::set, line);
  statement->target = expressions_.parse_target(true);
  if (tokens_.skip_sign("=")) {
    statement->expression = expressions_.parse_tuple();
    end_tag();
    return statement;
  }
  statement->kind = Statement::Kind::set_block;
  statement->expression = expressions_.parse_filters(nullptr);
  statement->body = parse_scope_body("endset");
  return statement;
}

std::unique_ptr<Statement> Parser::parse_if(int32_t line) {
  auto statement = make(Statement::Kind::conditional, line);
  while (true) {
    ExpressionPtr test;
    if (last_end_ != "else" || statement->branches.empty()) test = expressions_.parse_tuple(false);
    const bool is_else = test == nullptr;
    end_tag();
    Body body = is_else ? parse_body({"endif"}) : parse_body({"elif", "else", "endif"});
    statement->branches.emplace_back(std::move(test), std::move(body));
    if (last_end_ == "endif") break;
  }
  end_tag();
  return statement;
}

std::unique_ptr<Statement> Parser::parse_for(int32_t line) {
  auto statement = make(Statement::Kind::loop, line);
  statement->target = expressions_.parse_target(false);
  if (!tokens_.skip_name("in")) tokens_.unexpected("'in'");
  statement->expression = expressions_.parse_tuple(false);
  if (tokens_.skip_name("if")) statement->filter = expressions_.parse_expression();
  if (tokens_.current().is_name("recursive")) {
    tokens_.refuse("expected a plain loop, got a recursive one, which is not offered", StatusCode::unsupported);
  }
  end_tag();
  ++scope_depth_, ++loop_depth_;
  statement->body = parse_body({"else", "endfor"});
  --loop_depth_;
  if (last_end_ == "else") {
    end_tag();
    statement->else_body = parse_body({"endfor"});
  }
  --scope_depth_;
  end_tag();
  return statement;
}

std::unique_ptr<Statement> Parser::parse_macro(int32_t line) {
  if (scope_depth_ > 0) {
    throw TemplateError{StatusCode::unsupported,
                        "expected macros outside of loops and of other macros, got one inside; that is not offered", line};
  }
  auto statement = make(Statement::Kind::macro, line);
  statement->macro = std::make_unique<MacroNode>();
  MacroNode& macro = *statement->macro;
  macro.line = line;
  macro.name = tokens_.expect(Type::name, "the name of a macro").text;
  statement->target.name = expressions_.name_id(macro.name);
  tokens_.expect_sign("(");
  while (!tokens_.current().is_sign(")")) {
    if (!macro.parameters.empty()) tokens_.expect_sign(",");
    const std::string& name = tokens_.expect(Type::name, "the name of a parameter").text;
    macro.parameters.push_back(expressions_.name_id(name));
    macro.parameter_texts.push_back(name);
    if (tokens_.skip_sign("=")) {
      macro.defaults.push_back(expressions_.parse_expression());
    } else if (!macro.defaults.empty()) {
      tokens_.refuse("expected a default value for '" + name + "', because the parameter before it has one");
    }
  }
  tokens_.expect_sign(")");
  macro.body = parse_scope_body("endmacro");
  return statement;
}

std::unique_ptr<Statement> Parser::parse_with(int32_t line) {
  auto statement = make(Statement::Kind::with, line);
  while (tokens_.current().type != Type::block_end) {
    if (!statement->assignments.empty()) tokens_.expect_sign(",");
    Target target = expressions_.parse_target(false);
    tokens_.expect_sign("=");
    statement->assignments.emplace_back(std::move(target), expressions_.parse_expression());
  }
  ++scope_depth_;
  statement->body = parse_block_body("endwith");
  --scope_depth_;
  return statement;
}

}  // namespace

Tree parse_template(std::string_view source) { return Parser(source).run(); }

}  // namespace rarefy::model::jinja
