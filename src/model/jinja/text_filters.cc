// Filters that work on text and numbers.
#include <charconv>
#include <cmath>

#include "model/jinja/characters.h"
#include "model/jinja/filters.h"
#include "model/jinja/interpreter.h"
#include "model/jinja/methods.h"
#include "model/jinja/operators.h"
#include "model/jinja/printing.h"

namespace rarefy::model::jinja {
namespace {

using Names1 = std::array<std::string_view, 1>;
using Names2 = std::array<std::string_view, 2>;
using Names3 = std::array<std::string_view, 3>;

template <std::string (*Change)(std::string_view)>
Value changed(Interpreter& run, const Value& input, const Arguments& arguments) {
  bind_none(arguments, "upper, lower, capitalize or title");
  const std::string text = to_str(input, run.budget());
  run.budget().work(16 * text.size());
  return run.text(Change(text));
}

// A word begins after white space, a hyphen or an opening bracket: not the words of str.title.
std::string titled(std::string_view text) {
  std::string result;
  bool in_word = false;
  for (std::size_t i = 0; i < text.size(); i += character_bytes(text[i])) {
    const std::string_view character = text.substr(i, character_bytes(text[i]));
    result += in_word ? to_lower(character) : to_upper(character);
    const uint32_t c = first_character(character);
    in_word = !is_space(c) && std::string_view("-({[<").find(character) == std::string_view::npos;
  }
  return result;
}

Value trim(Interpreter& run, const Value& input, const Arguments& arguments) {
  const auto [chars] = bind(arguments, "trim", Names1{"chars"});
  const std::string* set = text_or_null(chars, "trim");
  const std::string text = to_str(input, run.budget());
  run.budget().work(text.size() * (set == nullptr ? 4 : 8 + set->size()));
  return run.text(std::string(strip_right(strip_left(text, set), set)));
}

Value to_string(Interpreter& run, const Value& input, const Arguments& arguments) {
  bind_none(arguments, "string");
  return input.is(Kind::string) ? input : run.text(to_str(input, run.budget()));
}

Value replace(Interpreter& run, const Value& input, const Arguments& arguments) {
  const auto [old_text, new_text, count] = bind(arguments, "replace", Names3{"old", "new", "count"}, 2);
  Budget& budget = run.budget();
  return run.text(replaced(budget, to_str(input, budget), to_str(*old_text, budget), to_str(*new_text, budget),
                           integer_or(count, -1, "replace")));
}

Value indent(Interpreter& run, const Value& input, const Arguments& arguments) {
  const auto [width, first, blank] = bind(arguments, "indent", Names3{"width", "first", "blank"});
  Budget& budget = run.budget();
  Text spaces(budget);
  if (width != nullptr && width->is(Kind::string)) {
    spaces.append(width->text());
  } else {
    spaces.append(static_cast<std::size_t>(std::max<int64_t>(0, integer_or(width, 4, "indent"))), " ");
  }
  const std::string indention = spaces.take();
  const std::string whole = required_text(input, "indent") + "\n";
  budget.work(16 * whole.size());
  Text text(budget);
  const bool indents_first = flag_or(first, false), indents_blank = flag_or(blank, false);
  bool is_first = true;
  for_each_line(whole, [&](std::string_view line) {
    budget.step();
    if (!is_first) text.append('\n');
    if (is_first ? indents_first : indents_blank || !line.empty()) text.append(indention);
    text.append(line);
    is_first = false;
  });
  return run.text(text.take());
}

std::string_view number_text(const std::string& text) { return strip_right(strip_left(text)); }

// Python's int(text, base) without prefixes; nothing when it is no such number.
std::optional<int64_t> parse_integer(std::string_view text, int base) {
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  if (text.empty() || text[0] == '-' || text[0] == '+') return {};
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (end != text.data() + text.size()) return {};
  if (error == std::errc::result_out_of_range) fail("int: expected an integer of at most 64 bits, got a larger one");
  if (error != std::errc()) return {};
  return negative ? -value : value;
}

std::optional<double> parse_real(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  double value = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc::result_out_of_range || error != std::errc() || end != text.data() + text.size()) return {};
  return value;
}

std::optional<double> real_of(const Value& input) {
  if (input.is_number()) return input.number();
  if (input.is(Kind::string)) return parse_real(number_text(input.text()));
  return {};
}

Value to_integer(Interpreter&, const Value& input, const Arguments& arguments) {
  const auto [otherwise, base] = bind(arguments, "int", Names2{"default", "base"});
  require_defined(input);
  if (input.is_whole()) return Value(input.whole());
  if (input.is(Kind::string)) {
    const int64_t radix = integer_or(base, 10, "int");
    if (radix < 2 || radix > 36) fail("int: expected a base from 2 to 36, got " + std::to_string(radix));
    if (const auto value = parse_integer(number_text(input.text()), static_cast<int>(radix))) return Value(*value);
  }
  if (const auto value = real_of(input); value && std::isfinite(*value)) {
    if (std::fabs(*value) >= 9.2e18) fail("int: expected an integer of at most 64 bits, got a larger one");
    return Value(static_cast<int64_t>(*value));
  }
  return otherwise != nullptr ? *otherwise : Value(int64_t{0});
}

Value to_real(Interpreter&, const Value& input, const Arguments& arguments) {
  const auto [otherwise] = bind(arguments, "float", Names1{"default"});
  require_defined(input);
  if (const auto value = real_of(input)) return Value(*value);
  return otherwise != nullptr ? *otherwise : Value(0.0);
}

Value absolute(Interpreter&, const Value& input, const Arguments& arguments) {
  bind_none(arguments, "abs");
  require_defined(input);
  if (input.is(Kind::real)) return Value(std::fabs(input.real()));
  if (!input.is_whole()) fail("abs: expected a number, got a " + std::string(type_name(input)));
  return input.whole() < 0 ? unary(Operator::negate, input) : Value(input.whole());
}

Value rounded(Interpreter&, const Value& input, const Arguments& arguments) {
  const auto [precision, method] = bind(arguments, "round", Names2{"precision", "method"});
  const int64_t digits = integer_or(precision, 0, "round");
  const std::string* how = text_or_null(method, "round");
  if (digits < 0 || digits > 15) fail("round: expected a precision from 0 to 15, got " + std::to_string(digits));
  require_defined(input);
  if (!input.is_number()) fail("round: expected a number, got a " + std::string(type_name(input)));
  if (how == nullptr || *how == "common") {
    if (input.is_whole()) return Value(input.whole());
    // Through decimal digits, which rounds as Python does: correctly, ties of the binary value to even.
    char buffer[400];
    const int size = std::snprintf(buffer, sizeof buffer, "%.*f", static_cast<int>(digits), input.real());
    const auto value = parse_real(std::string_view(buffer, static_cast<std::size_t>(std::max(0, size))));
    return Value(value ? *value : input.real());
  }
  if (*how != "ceil" && *how != "floor") fail("round: expected common, ceil or floor, got '" + *how + "'");
  const double scale = std::pow(10.0, static_cast<double>(digits));
  const double scaled = input.number() * scale;
  return Value((*how == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

}  // namespace

std::vector<Filter> text_filters() {
  return {{"abs", absolute},     {"capitalize", changed<capitalized>}, {"float", to_real},   {"indent", indent},
          {"int", to_integer},   {"lower", changed<to_lower>},         {"replace", replace}, {"round", rounded},
          {"string", to_string}, {"title", changed<titled>},           {"trim", trim},       {"upper", changed<to_upper>}};
}

}  // namespace rarefy::model::jinja
