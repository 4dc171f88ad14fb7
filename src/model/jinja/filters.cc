#include "model/jinja/filters.h"

#include <algorithm>

#include "model/jinja/interpreter.h"
#include "model/jinja/operators.h"
#include "model/jinja/printing.h"

namespace rarefy::model::jinja {
namespace {

Value default_value(Interpreter&, const Value& input, const Arguments& arguments) {
  const auto [otherwise, when_false] =
      bind(arguments, "default", std::array<std::string_view, 2>{"default_value", "boolean"});
  const bool use = input.is(Kind::undefined) || (flag_or(when_false, false) && !truthy(input));
  if (!use) return input;
  return otherwise != nullptr ? *otherwise : make_string(nullptr, "");
}

// Marks text that need not be escaped. Nothing is escaped here.
Value safe(Interpreter& run, const Value& input, const Arguments& arguments) {
  bind_none(arguments, "safe");
  return input.is(Kind::string) ? input : run.text(to_str(input, run.budget()));
}

Value count(Interpreter& run, const Value& input, const Arguments& arguments) {
  bind_none(arguments, "length");
  return Value(length(input, run.budget()));
}

const std::vector<Filter>& all_filters() {
  static const std::vector<Filter> all = [] {
    std::vector<Filter> filters = {{"count", count},  {"d", default_value}, {"default", default_value},
                                   {"length", count}, {"safe", safe},       {"tojson", filter_tojson}};
    for (const auto& more : {text_filters(), sequence_filters()}) filters.insert(filters.end(), more.begin(), more.end());
    return filters;
  }();
  return all;
}

}  // namespace

const Filter* find_filter(std::string_view name) {
  const std::vector<Filter>& filters = all_filters();
  const auto found =
      std::find_if(filters.begin(), filters.end(), [&](const Filter& filter) { return filter.name == name; });
  return found == filters.end() ? nullptr : &*found;
}

Value filter_tojson(Interpreter& run, const Value& input, const Arguments& arguments) {
  constexpr int64_t kMaxIndent = 64;
  const auto [ensure_ascii, indent, separators, sort_keys] =
      bind(arguments, "tojson", std::array<std::string_view, 4>{"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = flag_or(ensure_ascii, false);
  style.sort_keys = flag_or(sort_keys, false);
  if (indent != nullptr && indent->is(Kind::string)) {
    style.indent = indent->text();
  } else if (indent != nullptr && !indent->is(Kind::none)) {
    const int64_t spaces = integer_or(indent, 0, "tojson");
    if (spaces > kMaxIndent) fail("tojson: expected an indent of at most " + std::to_string(kMaxIndent) + ", got more");
    style.indent.emplace();
    style.indent->resize(static_cast<std::size_t>(std::max<int64_t>(0, spaces)), ' ');
  }
  if (style.indent) style.item_separator.assign(1, ',');
  if (separators != nullptr && !separators->is(Kind::none)) {
    const auto parts = iterate(*separators, run.budget());
    if (parts.size() != 2) fail("tojson: expected two separators, got " + std::to_string(parts.size()));
    style.item_separator = required_text(parts[0], "tojson");
    style.key_separator = required_text(parts[1], "tojson");
  }
  Text text(run.budget());
  append_json(input, style, text);
  return run.text(text.take());
}

}  // namespace rarefy::model::jinja
