#include "model/jinja/value.h"

#include <algorithm>

namespace rarefy::model::jinja {
namespace {

// JSON that comes in may be 64 levels deep; templates wrap it in a few lists.
constexpr int32_t kMaxDepth = 100;

int32_t depth_of(const Value& value) {
  if (value.is(Kind::list)) return value.list().depth;
  if (value.is(Kind::dict)) return value.dict().depth;
  if (value.is(Kind::callable)) return depth_of(value.callable().self) + 1;
  return 0;
}

int32_t one_deeper(int32_t depth) {
  if (depth >= kMaxDepth) {
    fail("expected lists and dicts of at most " + std::to_string(kMaxDepth) + " levels, got more",
         StatusCode::resource_exhausted);
  }
  return depth + 1;
}

}  // namespace

const void* Value::identity() const {
  return std::visit(
      [](const auto& held) -> const void* {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::is_pointer_v<Held>) return held;
        if constexpr (requires { held.get(); }) return held.get();
        return nullptr;
      },
      data_);
}

const Value* DictObject::find(std::string_view key) const {
  for (const auto& [name, value] : items) {
    if (name.is(Kind::string) && name.text() == key) return &value;
  }
  return nullptr;
}

Value make_undefined(std::string what) {
  return Value(std::make_shared<UndefinedObject>(UndefinedObject{std::move(what)}));
}

Value make_string(Budget* budget, std::string text) {
  Charge charge(budget, sizeof(StringObject) + text.size());
  return Value(std::make_shared<StringObject>(StringObject{std::move(text), std::move(charge)}));
}

Value make_list(Budget* budget, ListObject::Form form, std::vector<Value> items) {
  int32_t depth = 0;
  for (const Value& item : items) depth = std::max(depth, depth_of(item));
  Charge charge(budget, sizeof(ListObject) + items.size() * sizeof(Value));
  return Value(std::make_shared<ListObject>(ListObject{form, std::move(items), one_deeper(depth), std::move(charge)}));
}

Value make_dict(Budget* budget, std::vector<std::pair<Value, Value>> items) {
  int32_t depth = 0;
  for (const auto& [key, value] : items) depth = std::max({depth, depth_of(key), depth_of(value)});
  Charge charge(budget, sizeof(DictObject) + items.size() * 2 * sizeof(Value));
  return Value(std::make_shared<DictObject>(DictObject{std::move(items), one_deeper(depth), std::move(charge)}));
}

std::string_view type_name(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined: return "Undefined";
    case Kind::none: return "NoneType";
    case Kind::boolean: return "bool";
    case Kind::integer: return "int";
    case Kind::real: return "float";
    case Kind::string: return "str";
    case Kind::dict: return "dict";
    case Kind::callable: return "function";
    case Kind::name_space: return "Namespace";
    case Kind::loop: return "LoopContext";
    case Kind::list: break;
  }
  switch (value.list().form) {
    case ListObject::Form::list: return "list";
    case ListObject::Form::tuple: return "tuple";
    case ListObject::Form::range: return "range";
    case ListObject::Form::view: return "dict view";
    case ListObject::Form::iterator: return "generator";
  }
  return "object";
}

}  // namespace rarefy::model::jinja
