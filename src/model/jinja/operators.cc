#include "model/jinja/operators.h"

#include <string.h>  // memmem

#include <algorithm>
#include <cmath>
#include <limits>

#include "model/jinja/characters.h"
#include "model/jinja/printing.h"

namespace rarefy::model::jinja {
namespace {

using Form = ListObject::Form;

bool is_row(const Value& value) {
  return value.is(Kind::list) && (value.list().form == Form::list || value.list().form == Form::tuple);
}

[[noreturn]] void out_of_range() { fail("expected an integer of at most 64 bits as a result, got a larger one"); }

const char* sign_of(Operator op) {
  switch (op) {
    case Operator::add: return "+";
    case Operator::subtract: return "-";
    case Operator::multiply: return "*";
    case Operator::divide: return "/";
    case Operator::floor_divide: return "//";
    case Operator::modulo: return "%";
    case Operator::power: return "**";
    default: return "?";
  }
}

Value power(int64_t base, int64_t exponent) {
  if (exponent < 0) return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) out_of_range();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) out_of_range();
  }
  return Value(result);
}

Value whole_arithmetic(Operator op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case Operator::add:
      if (__builtin_add_overflow(a, b, &result)) out_of_range();
      return Value(result);
    case Operator::subtract:
      if (__builtin_sub_overflow(a, b, &result)) out_of_range();
      return Value(result);
    case Operator::multiply:
      if (__builtin_mul_overflow(a, b, &result)) out_of_range();
      return Value(result);
    case Operator::power: return power(a, b);
    default: break;
  }
  if (b == 0) fail("expected a divisor other than 0");
  if (op == Operator::divide) return Value(static_cast<double>(a) / static_cast<double>(b));
  if (a == std::numeric_limits<int64_t>::min() && b == -1) {
    if (op == Operator::modulo) return Value(int64_t{0});
    out_of_range();
  }
  // Towards minus infinity, as in Python.
  const int64_t remainder = a % b;
  const bool adjust = remainder != 0 && (remainder < 0) != (b < 0);
  if (op == Operator::floor_divide) return Value(a / b - (adjust ? 1 : 0));
  return Value(remainder + (adjust ? b : 0));
}

Value real_arithmetic(Operator op, double a, double b) {
  switch (op) {
    case Operator::add: return Value(a + b);
    case Operator::subtract: return Value(a - b);
    case Operator::multiply: return Value(a * b);
    case Operator::power: return Value(std::pow(a, b));
    default: break;
  }
  if (b == 0.0) fail("expected a divisor other than 0");
  if (op == Operator::divide) return Value(a / b);
  double remainder = std::fmod(a, b);
  if (remainder != 0.0 && (remainder < 0.0) != (b < 0.0)) remainder += b;
  if (op == Operator::modulo) return Value(remainder);
  return Value(std::round((a - remainder) / b));
}

Value repeated(const Value& value, int64_t count, Budget& budget) {
  const auto times = static_cast<std::size_t>(std::max<int64_t>(0, count));
  if (value.is(Kind::string)) {
    Text text(budget);
    text.append(times, value.text());
    return make_string(&budget, text.take());
  }
  const std::vector<Value>& items = value.list().items;
  if (!items.empty() && times > static_cast<std::size_t>(budget.limits().max_value_bytes)) budget.expect(times);
  budget.expect(times * items.size() * sizeof(Value));
  budget.step(static_cast<int64_t>(times * items.size()));
  std::vector<Value> result;
  for (std::size_t i = 0; i < times && !items.empty(); ++i) result.insert(result.end(), items.begin(), items.end());
  return make_list(&budget, value.list().form, std::move(result));
}

}  // namespace

void require_defined(const Value& value) {
  if (!value.is(Kind::undefined)) return;
  fail(value.undefined() != nullptr ? value.undefined()->what : "an undefined value is used");
}

bool truthy(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined:
    case Kind::none: return false;
    case Kind::boolean: return value.boolean();
    case Kind::integer: return value.integer() != 0;
    case Kind::real: return value.real() != 0.0;
    case Kind::string: return !value.text().empty();
    case Kind::list: return value.list().form == Form::iterator || !value.list().items.empty();
    case Kind::dict: return !value.dict().items.empty();
    case Kind::callable:
    case Kind::name_space:
    case Kind::loop: break;
  }
  return true;
}

bool equals(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (a.is_number() && b.is_number()) {
    if (a.is_whole() && b.is_whole()) return a.whole() == b.whole();
    return a.number() == b.number();
  }
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::undefined:
    case Kind::none: return true;
    case Kind::string:
      if (a.text().size() != b.text().size()) return false;
      budget.work(a.text().size());
      return a.text() == b.text();
    case Kind::list: {
      const ListObject &x = a.list(), &y = b.list();
      if (&x == &y) return true;
      if (x.form != y.form || x.form == Form::iterator || x.form == Form::view || x.items.size() != y.items.size())
        return false;
      for (std::size_t i = 0; i < x.items.size(); ++i) {
        if (!equals(x.items[i], y.items[i], budget)) return false;
      }
      return true;
    }
    case Kind::dict: {
      const DictObject &x = a.dict(), &y = b.dict();
      if (x.items.size() != y.items.size()) return false;
      for (const auto& item : x.items) {
        const auto other = std::find_if(y.items.begin(), y.items.end(),
                                        [&](const auto& candidate) { return equals(candidate.first, item.first, budget); });
        if (other == y.items.end() || !equals(item.second, other->second, budget)) return false;
      }
      return true;
    }
    case Kind::callable:
    case Kind::name_space:
    case Kind::loop: return a.identity() == b.identity();
    case Kind::boolean:
    case Kind::integer:
    case Kind::real: break;
  }
  return false;
}

bool less(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (a.is_number() && b.is_number()) {
    if (a.is_whole() && b.is_whole()) return a.whole() < b.whole();
    return a.number() < b.number();
  }
  if (a.is(Kind::string) && b.is(Kind::string)) {
    budget.work(std::min(a.text().size(), b.text().size()));
    return a.text() < b.text();  // the order of UTF-8 bytes is that of code points
  }
  if (is_row(a) && is_row(b) && a.list().form == b.list().form) {
    const std::vector<Value>&x = a.list().items, &y = b.list().items;
    for (std::size_t i = 0; i < x.size() && i < y.size(); ++i) {
      if (!equals(x[i], y[i], budget)) return less(x[i], y[i], budget);
    }
    return x.size() < y.size();
  }
  require_defined(a);
  require_defined(b);
  fail("expected two values with an order, got a " + std::string(type_name(a)) + " and a " + std::string(type_name(b)));
}

bool contains(const Value& container, const Value& value, Budget& budget) {
  budget.step();
  if (container.is(Kind::string)) {
    if (!value.is(Kind::string)) {
      require_defined(value);
      fail("expected a string before 'in' and a string, got a " + std::string(type_name(value)));
    }
    // memmem takes linear time, which std::string::find does not promise: some nanoseconds a byte at worst.
    budget.work(8 * (container.text().size() + value.text().size()));
    return memmem(container.text().data(), container.text().size(), value.text().data(), value.text().size()) != nullptr;
  }
  if (container.is(Kind::dict)) {
    return std::any_of(container.dict().items.begin(), container.dict().items.end(),
                       [&](const auto& item) { return equals(item.first, value, budget); });
  }
  const auto items = iterate(container, budget);
  return std::any_of(items.begin(), items.end(), [&](const Value& item) { return equals(item, value, budget); });
}

Value arithmetic(Operator op, const Value& a, const Value& b, Budget& budget) {
  if (a.is_number() && b.is_number()) {
    if (a.is_whole() && b.is_whole()) return whole_arithmetic(op, a.whole(), b.whole());
    return real_arithmetic(op, a.number(), b.number());
  }
  require_defined(a);
  require_defined(b);
  if (op == Operator::add && a.is(Kind::string) && b.is(Kind::string)) {
    Text text(budget);
    text.append(a.text());
    text.append(b.text());
    return make_string(&budget, text.take());
  }
  if (op == Operator::add && is_row(a) && is_row(b) && a.list().form == b.list().form) {
    const std::vector<Value>&x = a.list().items, &y = b.list().items;
    budget.expect((x.size() + y.size()) * sizeof(Value));
    budget.step(static_cast<int64_t>(x.size() + y.size()));
    std::vector<Value> items = x;
    items.insert(items.end(), y.begin(), y.end());
    return make_list(&budget, a.list().form, std::move(items));
  }
  if (op == Operator::multiply && b.is_whole() && (a.is(Kind::string) || is_row(a))) return repeated(a, b.whole(), budget);
  if (op == Operator::multiply && a.is_whole() && (b.is(Kind::string) || is_row(b))) return repeated(b, a.whole(), budget);
  if (op == Operator::modulo && a.is(Kind::string))
    fail("formatting with % is not offered; use ~", StatusCode::unsupported);
  fail("expected operands that " + std::string(sign_of(op)) + " takes, got a " + std::string(type_name(a)) + " and a " +
       std::string(type_name(b)));
}

Value unary(Operator op, const Value& value) {
  require_defined(value);
  if (value.is(Kind::real)) return Value(op == Operator::negate ? -value.real() : value.real());
  if (!value.is_whole()) fail("expected a number behind a sign, got a " + std::string(type_name(value)));
  if (op == Operator::plus) return Value(value.whole());
  if (value.whole() == std::numeric_limits<int64_t>::min()) out_of_range();
  return Value(-value.whole());
}

Items iterate(const Value& value, Budget& budget) {
  std::vector<Value> items;
  switch (value.kind()) {
    case Kind::undefined: break;
    case Kind::list: {
      const ListObject& list = value.list();
      if (list.form != Form::iterator || !std::exchange(list.consumed, true)) return Items(value.list_object());
      break;
    }
    case Kind::string: {
      const std::string& text = value.text();
      budget.expect(text.size() * sizeof(Value));
      budget.step(static_cast<int64_t>(text.size()));
      for (std::size_t i = 0; i < text.size(); i += character_bytes(text[i])) {
        items.push_back(make_string(&budget, text.substr(i, character_bytes(text[i]))));
      }
      break;
    }
    case Kind::dict:
      budget.step(static_cast<int64_t>(value.dict().items.size()));
      for (const auto& [key, unused] : value.dict().items) items.push_back(key);
      break;
    default: fail("expected a value to walk through, got a " + std::string(type_name(value)));
  }
  return Items(make_list(&budget, Form::list, std::move(items)).list_object());
}

int64_t length(const Value& value, Budget& budget) {
  switch (value.kind()) {
    case Kind::undefined: return 0;
    case Kind::string: budget.work(2 * value.text().size()); return static_cast<int64_t>(num_characters(value.text()));
    case Kind::dict: return static_cast<int64_t>(value.dict().items.size());
    case Kind::list:
      if (value.list().form != Form::iterator) return static_cast<int64_t>(value.list().items.size());
      break;
    default: break;
  }
  fail("expected a value with a length, got a " + std::string(type_name(value)));
}

}  // namespace rarefy::model::jinja
