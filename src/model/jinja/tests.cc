#include "model/jinja/tests.h"

#include <algorithm>

#include "model/jinja/characters.h"
#include "model/jinja/interpreter.h"
#include "model/jinja/operators.h"
#include "model/jinja/printing.h"

namespace rarefy::model::jinja {
namespace {

using Form = ListObject::Form;

template <bool (*Holds)(const Value&)>
bool plain(Interpreter&, const Value& input, const Arguments& arguments) {
  bind_none(arguments, "test");
  return Holds(input);
}

const Value& other(const Arguments& arguments) {
  return *bind(arguments, "test", std::array<std::string_view, 1>{"other"}, 1)[0];
}

enum class Order { lt, le, gt, ge };
template <Order kOrder>
bool ordered(Interpreter& run, const Value& input, const Arguments& arguments) {
  const Value& value = other(arguments);
  Budget& budget = run.budget();
  const bool swapped = kOrder == Order::gt || kOrder == Order::ge;
  if (swapped ? less(value, input, budget) : less(input, value, budget)) return true;
  return (kOrder == Order::le || kOrder == Order::ge) && equals(input, value, budget);
}

bool is_equal(Interpreter& run, const Value& input, const Arguments& arguments) {
  return equals(input, other(arguments), run.budget());
}
bool is_not_equal(Interpreter& run, const Value& input, const Arguments& arguments) {
  return !equals(input, other(arguments), run.budget());
}
bool is_in(Interpreter& run, const Value& input, const Arguments& arguments) {
  return contains(other(arguments), input, run.budget());
}

bool is_same(Interpreter& run, const Value& input, const Arguments& arguments) {
  const Value& value = other(arguments);
  if (input.kind() != value.kind()) return false;
  return input.identity() != nullptr ? input.identity() == value.identity() : equals(input, value, run.budget());
}

int64_t whole_of(const Value& value) {
  require_defined(value);
  if (!value.is_whole()) fail("expected an integer, got a " + std::string(type_name(value)));
  return value.whole();
}

bool divisible_by(Interpreter&, const Value& input, const Arguments& arguments) {
  const int64_t divisor = whole_of(other(arguments));
  if (divisor == 0) fail("expected a divisor other than 0");
  return divisor == -1 || whole_of(input) % divisor == 0;
}

// Some letter, and none of the other case.
template <bool (*Wanted)(uint32_t), bool (*Unwanted)(uint32_t)>
bool has_case(Interpreter& run, const Value& input, const Arguments& arguments) {
  bind_none(arguments, "test");
  const std::string text = to_str(input, run.budget());
  run.budget().work(16 * text.size());
  bool any = false;
  for (std::size_t i = 0; i < text.size(); i += character_bytes(text[i])) {
    const uint32_t c = first_character(std::string_view(text).substr(i));
    if (Unwanted(c)) return false;
    any = any || Wanted(c);
  }
  return any;
}

bool is_walkable(const Value& v) {
  return v.is(Kind::string) || v.is(Kind::list) || v.is(Kind::dict) || v.is(Kind::undefined) || v.is(Kind::loop);
}
bool is_sequence(const Value& v) {
  if (v.is(Kind::list)) return v.list().form != Form::view && v.list().form != Form::iterator;
  return v.is(Kind::string) || v.is(Kind::dict) || v.is(Kind::undefined);
}

template <Kind kKind>
bool has_kind(const Value& v) {
  return v.is(kKind);
}

constexpr Test kTests[] = {
    {"boolean", plain<has_kind<Kind::boolean>>},
    {"callable", plain<has_kind<Kind::callable>>},
    {"defined", plain<[](const Value& v) { return !v.is(Kind::undefined); }>},
    {"divisibleby", divisible_by},
    {"eq", is_equal},
    {"equalto", is_equal},
    {"==", is_equal},
    {"even", plain<[](const Value& v) { return whole_of(v) % 2 == 0; }>},
    {"false", plain<[](const Value& v) { return v.is(Kind::boolean) && !v.boolean(); }>},
    {"float", plain<has_kind<Kind::real>>},
    {"ge", ordered<Order::ge>},
    {">=", ordered<Order::ge>},
    {"greaterthan", ordered<Order::gt>},
    {"gt", ordered<Order::gt>},
    {">", ordered<Order::gt>},
    {"in", is_in},
    {"integer", plain<has_kind<Kind::integer>>},
    {"iterable", plain<is_walkable>},
    {"le", ordered<Order::le>},
    {"<=", ordered<Order::le>},
    {"lessthan", ordered<Order::lt>},
    {"lower", has_case<is_lower, is_upper>},
    {"lt", ordered<Order::lt>},
    {"<", ordered<Order::lt>},
    {"mapping", plain<has_kind<Kind::dict>>},
    {"ne", is_not_equal},
    {"!=", is_not_equal},
    {"none", plain<has_kind<Kind::none>>},
    {"number", plain<[](const Value& v) { return v.is_number(); }>},
    {"odd", plain<[](const Value& v) { return whole_of(v) % 2 != 0; }>},
    {"sameas", is_same},
    {"sequence", plain<is_sequence>},
    {"string", plain<has_kind<Kind::string>>},
    {"true", plain<[](const Value& v) { return v.is(Kind::boolean) && v.boolean(); }>},
    {"undefined", plain<has_kind<Kind::undefined>>},
    {"upper", has_case<is_upper, is_lower>},
};

}  // namespace

const Test* find_test(std::string_view name) {
  const auto found =
      std::find_if(std::begin(kTests), std::end(kTests), [&](const Test& test) { return test.name == name; });
  return found == std::end(kTests) ? nullptr : &*found;
}

}  // namespace rarefy::model::jinja
