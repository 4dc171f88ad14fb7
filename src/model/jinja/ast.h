// A template as a tree. Names are numbers into Tree::names. Every node knows its line, and how deep it is, so that no walk over
// the tree can exhaust the stack.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/jinja/value.h"

namespace rarefy::model::jinja {

struct Filter;
struct Test;
struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

enum class Operator {
  add,
  subtract,
  multiply,
  divide,
  floor_divide,
  modulo,
  power,
  negate,
  plus,
  eq,
  ne,
  lt,
  le,
  gt,
  ge,
  in,
  not_in
};

struct Expression {
  enum class Kind {
    constant,     // value
    name,         // name
    list,         // children
    tuple,        // children
    dict,         // children: key, value, key, value, ...
    unary,        // operators[0], children[0]
    binary,       // operators[0], children[0], children[1]
    compare,      // children[0] operators[0] children[1] operators[1] children[2] ...
    logical_and,  // children
    logical_or,   // children
    logical_not,  // children[0]
    conditional,  // children: test, then, else (may be missing)
    concat,       // children
    attribute,    // children[0].text
    item,         // children[0][children[1]]
    slice,        // children[0][a:b:c]; null where left out
    call,         // children[0](children[1], ..., keywords)
    filter,       // children[0] | filter(children[1], ..., keywords); no children[0] in {% set x | filter %}
    test,         // children[0] is test(children[1], ..., keywords)
  };
  Kind kind = Kind::constant;
  int32_t line = 0;
  int32_t depth = 1;
  int32_t name = 0;
  Value value = {};
  std::string text = {};
  const Filter* filter = nullptr;
  const Test* test = nullptr;
  std::vector<Operator> operators = {};
  std::vector<ExpressionPtr> children = {};
  std::vector<std::pair<std::string, ExpressionPtr>> keywords = {};
};

// What can be assigned to.
struct Target {
  enum class Kind { name, attribute, tuple };  // x, x.text, (elements)
  Kind kind = Kind::name;
  int32_t name = 0;
  std::string text = {};
  std::vector<Target> elements = {};
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

struct MacroNode {
  std::string name;
  std::vector<int32_t> parameters;      // [num_parameters] i32; names
  std::vector<ExpressionPtr> defaults;  // of the last parameters
  std::vector<std::string> parameter_texts;
  Body body;
  int32_t line = 0;
};

struct Statement {
  enum class Kind {
    text,         // text
    output,       // expression
    set,          // target = expression
    set_block,    // target = body, through the filters of `expression` when there is one
    conditional,  // branches: (test, body); a null test is else
    loop,         // for target in expression if filter: body, else_body
    macro,        // macro
    with,         // assignments, body
    scope,        // body with variables of its own: {% generation %}
    break_loop,
    continue_loop,
  };
  Kind kind = Kind::text;
  int32_t line = 0;
  std::string text = {};
  Target target = {};
  ExpressionPtr expression = {};
  ExpressionPtr filter = {};
  std::vector<std::pair<ExpressionPtr, Body>> branches = {};
  std::vector<std::pair<Target, ExpressionPtr>> assignments = {};
  Body body = {}, else_body = {};
  std::unique_ptr<MacroNode> macro = {};
};

struct Tree {
  std::vector<std::string> names;
  Body body;
};

}  // namespace rarefy::model::jinja
