// Filters that work on rows of values.
#include <algorithm>
#include <charconv>

#include "model/jinja/characters.h"
#include "model/jinja/filters.h"
#include "model/jinja/interpreter.h"
#include "model/jinja/methods.h"
#include "model/jinja/operators.h"
#include "model/jinja/printing.h"
#include "model/jinja/tests.h"

namespace rarefy::model::jinja {
namespace {

using Form = ListObject::Form;
using Names2 = std::array<std::string_view, 2>;
using Names3 = std::array<std::string_view, 3>;
constexpr Names2 kOrderNames = {"case_sensitive", "attribute"};

// "a.b.0": members of members, and items by number.
Value member_path(Interpreter& run, Value value, const Value& path) {
  if (path.is_whole()) return run.item(value, path);
  const std::string& whole = required_text(path, "attribute");
  for (std::size_t begin = 0; begin <= whole.size();) {
    const std::size_t end = std::min(whole.find('.', begin), whole.size());
    const std::string part = whole.substr(begin, end - begin);
    begin = end + 1;
    run.budget().step();
    int64_t index = 0;
    const auto [last, error] = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index = !part.empty() && error == std::errc() && last == part.data() + part.size() && part[0] != '-';
    value = run.item(value, is_index ? Value(index) : run.text(part));
  }
  return value;
}

Value without_case(Interpreter& run, const Value& value) {
  if (!value.is(Kind::string)) return value;
  run.budget().work(16 * value.text().size());
  return run.text(to_lower(value.text()));
}

// What values are ordered and told apart by: themselves or a member, strings without case unless it matters.
std::vector<std::pair<Value, Value>> keyed(Interpreter& run, const Value& input, const Value* attribute,
                                           bool case_sensitive) {
  std::vector<std::pair<Value, Value>> result;
  const auto items = iterate(input, run.budget());
  run.budget().expect(items.size() * 2 * sizeof(Value));
  for (const Value& item : items) {
    run.budget().step();
    Value key = attribute == nullptr || attribute->is(Kind::none) ? item : member_path(run, item, *attribute);
    result.emplace_back(case_sensitive ? key : without_case(run, key), item);
  }
  return result;
}

void sort_by_key(Interpreter& run, std::vector<std::pair<Value, Value>>& items, bool reverse) {
  Budget& budget = run.budget();
  // A merge sort of our own comparisons: these may throw, which std::stable_sort allows.
  std::stable_sort(items.begin(), items.end(), [&](const auto& a, const auto& b) {
    return reverse ? less(b.first, a.first, budget) : less(a.first, b.first, budget);
  });
}

std::vector<Value> values_of(std::vector<std::pair<Value, Value>> items) {
  std::vector<Value> values;
  for (auto& [key, value] : items) values.push_back(std::move(value));
  return values;
}

Value sort(Interpreter& run, const Value& input, const Arguments& arguments) {
  const auto [reverse, case_sensitive, attribute] =
      bind(arguments, "sort", Names3{"reverse", "case_sensitive", "attribute"});
  if (attribute != nullptr && attribute->is(Kind::string) && attribute->text().find(',') != std::string::npos) {
    fail("sort: expected one attribute, got several", StatusCode::unsupported);
  }
  require_defined(input);
  auto items = keyed(run, input, attribute, flag_or(case_sensitive, false));
  sort_by_key(run, items, flag_or(reverse, false));
  return run.list(values_of(std::move(items)));
}

Value dict_sort(Interpreter& run, const Value& input, const Arguments& arguments) {
  const auto [case_sensitive, by, reverse] = bind(arguments, "dictsort", Names3{"case_sensitive", "by", "reverse"});
  const std::string* part = text_or_null(by, "dictsort");
  if (part != nullptr && *part != "key" && *part != "value")
    fail("dictsort: expected by='key' or 'value', got '" + *part + "'");
  require_defined(input);
  if (!input.is(Kind::dict)) fail("dictsort: expected a dict, got a " + std::string(type_name(input)));
  std::vector<std::pair<Value, Value>> items;
  for (const auto& [key, value] : input.dict().items) {
    run.budget().step();
    const Value& sort_key = part != nullptr && *part == "value" ? value : key;
    items.emplace_back(flag_or(case_sensitive, false) ? sort_key : without_case(run, sort_key), run.tuple({key, value}));
  }
  sort_by_key(run, items, flag_or(reverse, false));
  return run.list(values_of(std::move(items)));
}

Value unique(Interpreter& run, const Value& input, const Arguments& arguments) {
  const auto [case_sensitive, attribute] = bind(arguments, "unique", kOrderNames);
  std::vector<std::pair<Value, Value>> kept;
  for (auto& item : keyed(run, input, attribute, flag_or(case_sensitive, false))) {
    const bool known = std::any_of(kept.begin(), kept.end(),
                                   [&](const auto& other) { return equals(other.first, item.first, run.budget()); });
    if (!known) kept.push_back(std::move(item));
  }
  return run.iterator(values_of(std::move(kept)));
}

template <bool kLargest>
Value extreme(Interpreter& run, const Value& input, const Arguments& arguments) {
  const auto [case_sensitive, attribute] = bind(arguments, kLargest ? "max" : "min", kOrderNames);
  const auto items = keyed(run, input, attribute, flag_or(case_sensitive, false));
  if (items.empty()) return make_undefined("no smallest or largest item: the sequence is empty");
  const std::pair<Value, Value>* best = &items[0];
  for (const auto& item : items) {
    if (kLargest ? less(best->first, item.first, run.budget()) : less(item.first, best->first, run.budget())) best = &item;
  }
  return best->second;
}

Value sum(Interpreter& run, const Value& input, const Arguments& arguments) {
  const auto [attribute, start] = bind(arguments, "sum", Names2{"attribute", "start"});
  Value total = start != nullptr ? *start : Value(int64_t{0});
  for (const Value& item : iterate(input, run.budget())) {
    run.budget().step(2);
    const Value value = attribute == nullptr || attribute->is(Kind::none) ? item : member_path(run, item, *attribute);
    if (value.is(Kind::string)) fail("sum: expected numbers, got a string");
    total = arithmetic(Operator::add, total, value, run.budget());
  }
  return total;
}

Value first(Interpreter& run, const Value& input, const Arguments& arguments) {
  bind_none(arguments, "first");
  const auto items = iterate(input, run.budget());
  return items.empty() ? make_undefined("no first item: the sequence is empty") : items[0];
}

Value last(Interpreter& run, const Value& input, const Arguments& arguments) {
  bind_none(arguments, "last");
  if (input.is(Kind::list) && input.list().form == Form::iterator)
    fail("expected a value that has an end, got a generator");
  const auto items = iterate(input, run.budget());
  return items.empty() ? make_undefined("no last item: the sequence is empty") : items[items.size() - 1];
}

Value to_list(Interpreter& run, const Value& input, const Arguments& arguments) {
  bind_none(arguments, "list");
  const auto items = iterate(input, run.budget());
  run.budget().step(static_cast<int64_t>(items.size() / 4));
  return run.list({items.begin(), items.end()});
}

Value reverse(Interpreter& run, const Value& input, const Arguments& arguments) {
  bind_none(arguments, "reverse");
  if (input.is(Kind::string)) {
    const std::string& text = input.text();
    run.budget().work(16 * text.size());
    std::string reversed;
    for (std::size_t end = text.size(); end > 0;) {
      std::size_t begin = end - 1;
      while ((text[begin] & 0xc0) == 0x80) --begin;
      reversed.append(text, begin, end - begin);
      end = begin;
    }
    return run.text(std::move(reversed));
  }
  const auto source = iterate(input, run.budget());
  std::vector<Value> items(source.begin(), source.end());
  run.budget().step(static_cast<int64_t>(items.size() / 4));
  std::reverse(items.begin(), items.end());
  return run.iterator(std::move(items));
}

Value items_of(Interpreter& run, const Value& input, const Arguments& arguments) {
  bind_none(arguments, "items");
  if (input.is(Kind::undefined)) return run.iterator({});
  if (!input.is(Kind::dict)) fail("items: expected a dict, got a " + std::string(type_name(input)));
  std::vector<Value> pairs;
  run.budget().step(static_cast<int64_t>(input.dict().items.size()));
  for (const auto& [key, value] : input.dict().items) pairs.push_back(run.tuple({key, value}));
  return run.iterator(std::move(pairs));
}

Value join(Interpreter& run, const Value& input, const Arguments& arguments) {
  const auto [separator, attribute] = bind(arguments, "join", Names2{"d", "attribute"});
  const std::string between = separator == nullptr ? std::string() : to_str(*separator, run.budget());
  Text text(run.budget());
  bool is_first = true;
  for (const Value& item : iterate(input, run.budget())) {
    run.budget().step();
    if (!is_first) text.append(between);
    is_first = false;
    append_str(attribute == nullptr || attribute->is(Kind::none) ? item : member_path(run, item, *attribute), text);
  }
  return run.text(text.take());
}

// The arguments from `from` on.
Arguments rest_of(const Arguments& arguments, std::size_t from) {
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin(), rest.positional.begin() + static_cast<std::ptrdiff_t>(from));
  return rest;
}

Value map(Interpreter& run, const Value& input, const Arguments& arguments) {
  std::vector<Value> results;
  if (arguments.positional.empty()) {
    const auto [attribute, otherwise] = bind(arguments, "map", Names2{"attribute", "default"}, 1);
    for (const Value& item : iterate(input, run.budget())) {
      run.budget().step();
      Value value = member_path(run, item, *attribute);
      const bool replace = value.is(Kind::undefined) && otherwise != nullptr;
      results.push_back(replace ? *otherwise : std::move(value));
    }
    return run.iterator(std::move(results));
  }
  const std::string& name = required_text(arguments.positional[0], "map");
  const Filter* filter = find_filter(name);
  if (filter == nullptr) fail("map: expected a filter that is offered, got '" + name + "'", StatusCode::unsupported);
  // A filter over filters could multiply calls without a node to count them.
  if (name == "map") fail("map: expected a filter other than map", StatusCode::unsupported);
  const Arguments rest = rest_of(arguments, 1);
  for (const Value& item : iterate(input, run.budget())) {
    run.budget().step();
    results.push_back(filter->function(run, item, rest));
  }
  return run.iterator(std::move(results));
}

// select, reject, selectattr, rejectattr.
template <bool kKeep, bool kByMember>
Value select(Interpreter& run, const Value& input, const Arguments& arguments) {
  constexpr std::size_t kTest = kByMember ? 1 : 0;
  if (kByMember && arguments.positional.empty())
    fail("selectattr or rejectattr: expected the name of an attribute, got none");
  const Test* test = nullptr;
  if (arguments.positional.size() > kTest) {
    const std::string& name = required_text(arguments.positional[kTest], "select or reject");
    test = find_test(name);
    if (test == nullptr) fail("expected a test that is offered, got '" + name + "'", StatusCode::unsupported);
  }
  const Arguments rest = test == nullptr ? Arguments{} : rest_of(arguments, kTest + 1);
  std::vector<Value> kept;
  for (const Value& item : iterate(input, run.budget())) {
    run.budget().step();
    const Value value = kByMember ? member_path(run, item, arguments.positional[0]) : item;
    if ((test == nullptr ? truthy(value) : test->function(run, value, rest)) == kKeep) kept.push_back(item);
  }
  return run.iterator(std::move(kept));
}

}  // namespace

std::vector<Filter> sequence_filters() {
  return {{"dictsort", dict_sort},
          {"first", first},
          {"items", items_of},
          {"join", join},
          {"last", last},
          {"list", to_list},
          {"map", map},
          {"max", extreme<true>},
          {"min", extreme<false>},
          {"reject", select<false, false>},
          {"rejectattr", select<false, true>},
          {"reverse", reverse},
          {"select", select<true, false>},
          {"selectattr", select<true, true>},
          {"sort", sort},
          {"sum", sum},
          {"unique", unique}};
}

}  // namespace rarefy::model::jinja
