// Expressions of the interpreter.
#include <algorithm>

#include "model/jinja/characters.h"
#include "model/jinja/filters.h"
#include "model/jinja/interpreter.h"
#include "model/jinja/methods.h"
#include "model/jinja/operators.h"
#include "model/jinja/printing.h"
#include "model/jinja/tests.h"

namespace rarefy::model::jinja {
namespace {

// Of evaluations inside each other, macros included: a few hundred bytes of stack each.
constexpr int32_t kMaxDepth = 600;

std::string object_name(const Value& object) {
  if (object.is(Kind::none)) return "'None'";
  std::string name = "'";
  name += type_name(object);
  return name += " object'";
}

// Where a slice of `length` items begins and ends, and how it steps, by Python's rules.
struct Slice {
  int64_t begin = 0, end = 0, step = 1;
  int64_t count() const {
    if (step > 0) return begin < end ? (end - begin - 1) / step + 1 : 0;
    return end < begin ? (begin - end - 1) / -step + 1 : 0;
  }
};

Slice resolve_slice(const Value* begin, const Value* end, const Value* step, int64_t length) {
  Slice slice;
  slice.step = integer_or(step, 1, "slice");
  if (slice.step == 0) fail("expected a slice step other than 0");
  const int64_t low = slice.step > 0 ? 0 : -1, high = slice.step > 0 ? length : length - 1;
  // A step beyond the length is as good as the length; the count is then computed without overflow.
  slice.step = std::clamp(slice.step, -(length + 1), length + 1);
  const auto place = [&](const Value* value, int64_t otherwise) {
    int64_t index = integer_or(value, otherwise, "slice");
    if (value == nullptr || value->is(Kind::none)) return otherwise;
    if (index < 0) index = std::max(index, -length - 1) + length;
    return std::clamp(index, low, high);
  };
  slice.begin = place(begin, slice.step > 0 ? 0 : length - 1);
  slice.end = place(end, slice.step > 0 ? length : -1);
  return slice;
}

}  // namespace

class Interpreter::Depth {
 public:
  explicit Depth(Interpreter& run) : run_(run) {
    if (++run_.depth_ > kMaxDepth) {
      --run_.depth_;
      fail("expected calls and expressions of at most " + std::to_string(kMaxDepth) +
               " levels, got more; a macro calls itself without end",
           StatusCode::resource_exhausted);
    }
  }
  ~Depth() { --run_.depth_; }
  Depth(const Depth&) = delete;
  Depth& operator=(const Depth&) = delete;

 private:
  Interpreter& run_;
};

Value Interpreter::evaluate(const Expression& node) {
  const Depth depth(*this);
  budget_.step();
  line_ = node.line;
  Value value = evaluate_in_place(node);
  line_ = node.line;
  return value;
}

Value Interpreter::evaluate_in_place(const Expression& node) {
  switch (node.kind) {
    case Expression::Kind::constant: return node.value;
    case Expression::Kind::name: return lookup(node.name);
    case Expression::Kind::list:
    case Expression::Kind::tuple: {
      std::vector<Value> items;
      for (const ExpressionPtr& child : node.children) items.push_back(evaluate(*child));
      return make_list(&budget_, node.kind == Expression::Kind::list ? ListObject::Form::list : ListObject::Form::tuple,
                       std::move(items));
    }
    case Expression::Kind::dict: return make_dict_of(node);
    case Expression::Kind::unary: return unary(node.operators[0], evaluate(*node.children[0]));
    case Expression::Kind::binary: {
      const Value left = evaluate(*node.children[0]);
      const Value right = evaluate(*node.children[1]);
      line_ = node.line;
      return arithmetic(node.operators[0], left, right, budget_);
    }
    case Expression::Kind::compare: return Value(compare(node));
    case Expression::Kind::logical_and:
    case Expression::Kind::logical_or: {
      Value value;
      for (const ExpressionPtr& child : node.children) {
        value = evaluate(*child);
        if (truthy(value) == (node.kind == Expression::Kind::logical_or)) break;
      }
      return value;
    }
    case Expression::Kind::logical_not: return Value(!truthy(evaluate(*node.children[0])));
    case Expression::Kind::conditional:
      if (truthy(evaluate(*node.children[0]))) return evaluate(*node.children[1]);
      if (node.children.size() > 2) return evaluate(*node.children[2]);
      return make_undefined("the inline if without else was false, which leaves its value undefined");
    case Expression::Kind::concat: {
      Text text(budget_);
      for (const ExpressionPtr& child : node.children) append_str(evaluate(*child), text);
      return make_string(&budget_, text.take());
    }
    case Expression::Kind::attribute: return attribute(evaluate(*node.children[0]), node.text);
    case Expression::Kind::item: {
      const Value object = evaluate(*node.children[0]);
      return item(object, evaluate(*node.children[1]));
    }
    case Expression::Kind::slice: return slice(node);
    case Expression::Kind::call: return call(node);
    case Expression::Kind::filter: return apply_filter(node, nullptr);
    case Expression::Kind::test: {
      const Value value = evaluate(*node.children[0]);
      const Arguments arguments = evaluate_arguments(node);
      line_ = node.line;
      return Value(node.test->function(*this, value, arguments));
    }
  }
  return {};
}

Value Interpreter::make_dict_of(const Expression& node) {
  std::vector<std::pair<Value, Value>> items;
  for (std::size_t i = 0; i + 1 < node.children.size(); i += 2) {
    Value key = evaluate(*node.children[i]);
    if (key.is(Kind::list) && key.list().form != ListObject::Form::tuple)
      fail("expected a key that cannot change, got a list");
    if (key.is(Kind::dict)) fail("expected a key that cannot change, got a dict");
    Value value = evaluate(*node.children[i + 1]);
    const auto known =
        std::find_if(items.begin(), items.end(), [&](const auto& item) { return equals(item.first, key, budget_); });
    if (known != items.end()) {
      known->second = std::move(value);
    } else {
      items.emplace_back(std::move(key), std::move(value));
    }
  }
  return make_dict(&budget_, std::move(items));
}

bool Interpreter::compare(const Expression& node) {
  Value left = evaluate(*node.children[0]);
  for (std::size_t i = 0; i < node.operators.size(); ++i) {
    Value right = evaluate(*node.children[i + 1]);
    line_ = node.line;
    bool holds = false;
    switch (node.operators[i]) {
      case Operator::eq: holds = equals(left, right, budget_); break;
      case Operator::ne: holds = !equals(left, right, budget_); break;
      case Operator::lt: holds = less(left, right, budget_); break;
      case Operator::gt: holds = less(right, left, budget_); break;
      case Operator::le: holds = less(left, right, budget_) || equals(left, right, budget_); break;
      case Operator::ge: holds = less(right, left, budget_) || equals(left, right, budget_); break;
      case Operator::in: holds = contains(right, left, budget_); break;
      default: holds = !contains(right, left, budget_); break;
    }
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Arguments Interpreter::evaluate_arguments(const Expression& node) {
  Arguments arguments;
  for (std::size_t i = 1; i < node.children.size(); ++i) arguments.positional.push_back(evaluate(*node.children[i]));
  for (const auto& [name, child] : node.keywords) arguments.keywords.emplace_back(name, evaluate(*child));
  return arguments;
}

Value Interpreter::apply_filter(const Expression& node, const Value* input) {
  const Depth depth(*this);
  Value value;
  if (node.children[0] == nullptr) {
    value = *input;
  } else if (node.children[0]->kind == Expression::Kind::filter) {
    value = apply_filter(*node.children[0], input);
  } else {
    value = evaluate(*node.children[0]);
  }
  budget_.step();
  const Arguments arguments = evaluate_arguments(node);
  line_ = node.line;
  return node.filter->function(*this, value, arguments);
}

Value Interpreter::call(const Expression& node) {
  const Value callee = evaluate(*node.children[0]);
  require_defined(callee);
  const Arguments arguments = evaluate_arguments(node);
  line_ = node.line;
  if (!callee.is(Kind::callable)) fail("expected a function to call, got a " + std::string(type_name(callee)));
  const CallableObject& function = callee.callable();
  if (function.macro != nullptr) return call_macro(*function.macro, arguments);
  return function.function(*this, function.self, arguments);
}

Value Interpreter::slice(const Expression& node) {
  const Value object = evaluate(*node.children[0]);
  Value parts[3];
  const Value* given[3] = {};
  for (std::size_t i = 0; i < 3; ++i) {
    if (node.children[i + 1] == nullptr) continue;
    parts[i] = evaluate(*node.children[i + 1]);
    given[i] = &parts[i];
  }
  line_ = node.line;
  require_defined(object);
  if (object.is(Kind::string)) {
    const std::string& whole = object.text();
    budget_.work(2 * whole.size());
    const Slice slice = resolve_slice(given[0], given[1], given[2], static_cast<int64_t>(num_characters(whole)));
    const int64_t count = slice.count();
    if (slice.step == 1) {
      const std::size_t begin = byte_offset(whole, static_cast<std::size_t>(slice.begin));
      const std::string_view rest = std::string_view(whole).substr(begin);
      return text(std::string(rest.substr(0, byte_offset(rest, static_cast<std::size_t>(count)))));
    }
    budget_.expect(whole.size() * sizeof(std::size_t));
    budget_.work(16 * whole.size());
    std::vector<std::size_t> offsets;
    for (std::size_t i = 0; i < whole.size(); i += character_bytes(whole[i])) offsets.push_back(i);
    std::string result;
    for (int64_t i = 0; i < count; ++i) {
      const std::size_t at = offsets[static_cast<std::size_t>(slice.begin + i * slice.step)];
      result.append(whole, at, character_bytes(whole[at]));
    }
    return text(std::move(result));
  }
  if (!object.is(Kind::list) || object.list().form == ListObject::Form::view ||
      object.list().form == ListObject::Form::iterator) {
    // Jinja asks for an item named by the slice, and finds none.
    return make_undefined(object_name(object) + " has no slices");
  }
  const std::vector<Value>& items = object.list().items;
  const Slice slice = resolve_slice(given[0], given[1], given[2], static_cast<int64_t>(items.size()));
  const int64_t count = slice.count();
  budget_.expect(static_cast<std::size_t>(count) * sizeof(Value));
  budget_.step(count);
  std::vector<Value> result;
  for (int64_t i = 0; i < count; ++i) result.push_back(items[static_cast<std::size_t>(slice.begin + i * slice.step)]);
  return make_list(&budget_, object.list().form, std::move(result));
}

Value Interpreter::attribute(const Value& object, const std::string& name) {
  require_defined(object);
  if (object.is(Kind::name_space)) {
    for (const auto& [known, value] : object.name_space()->members) {
      if (known == name) return value;
    }
    return make_undefined("the namespace has no member '" + name + "'");
  }
  if (object.is(Kind::loop)) {
    if (auto value = object.loop()->member(name, object)) return *std::move(value);
  } else if (auto method = find_method(object, name)) {
    return *std::move(method);
  }
  if (object.is(Kind::dict)) {
    budget_.step(static_cast<int64_t>(object.dict().items.size() / 8));
    if (const Value* value = object.dict().find(name)) return *value;
  }
  // What begins like this leads into the machinery of Python; Jinja's sandbox guards it, and nothing of it exists here.
  if (name.starts_with("__")) fail("access to attribute '" + name + "' is not allowed");
  return make_undefined(object_name(object) + " has no attribute '" + name + "'");
}

Value Interpreter::item(const Value& object, const Value& key) {
  require_defined(object);
  if (object.is(Kind::dict)) {
    budget_.step(static_cast<int64_t>(object.dict().items.size() / 8));
    for (const auto& [name, value] : object.dict().items) {
      if (equals(name, key, budget_)) return value;
    }
  }
  if (key.is_whole() && (object.is(Kind::list) || object.is(Kind::string))) {
    const bool counted = object.is(Kind::string) ||
                         (object.list().form != ListObject::Form::view && object.list().form != ListObject::Form::iterator);
    const int64_t size = counted ? length(object, budget_) : 0;
    const int64_t index = key.whole() < 0 ? key.whole() + size : key.whole();
    if (index < 0 || index >= size) {
      return make_undefined(object_name(object) + " has no item " + std::to_string(key.whole()));
    }
    if (object.is(Kind::list)) return object.list().items[static_cast<std::size_t>(index)];
    const std::string& whole = object.text();
    const std::size_t begin = byte_offset(whole, static_cast<std::size_t>(index));
    return text(whole.substr(begin, character_bytes(whole[begin])));
  }
  if (key.is(Kind::string)) return attribute(object, key.text());
  return make_undefined(object_name(object) + " has no such item");
}

}  // namespace rarefy::model::jinja
