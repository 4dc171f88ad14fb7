#include "model/jinja/methods.h"

#include <string.h>  // memmem

#include <algorithm>
#include <ctime>
#include <limits>

#include "model/jinja/characters.h"
#include "model/jinja/interpreter.h"
#include "model/jinja/operators.h"
#include "model/jinja/printing.h"

namespace rarefy::model::jinja {
namespace {

using Form = ListObject::Form;
using Function = CallableObject::Function;
using Names1 = std::array<std::string_view, 1>;
using Names2 = std::array<std::string_view, 2>;
using Names3 = std::array<std::string_view, 3>;

struct Method {
  std::string_view name;
  Function function;
};

Value bound(const Method& method, const Value& self) {
  auto object = std::make_shared<CallableObject>();
  object->name = method.name;
  object->function = method.function;
  object->self = self;
  return Value(std::move(object));
}

std::size_t find_bytes(std::string_view text, std::string_view part, std::size_t from) {
  if (from > text.size()) return std::string_view::npos;
  const void* found = memmem(text.data() + from, text.size() - from, part.data(), part.size());
  return found == nullptr ? std::string_view::npos
                          : static_cast<std::size_t>(static_cast<const char*>(found) - text.data());
}

template <std::string_view (*... Strips)(std::string_view, const std::string*)>
Value strip(Interpreter& run, const Value& self, const Arguments& arguments) {
  const auto [chars] = bind(arguments, "strip", Names1{"chars"});
  const std::string* set = text_or_null(chars, "strip");
  run.budget().work(self.text().size() * (set == nullptr ? 4 : 8 + set->size()));
  std::string_view text = self.text();
  ((text = Strips(text, set)), ...);
  return run.text(std::string(text));
}

Value split(Interpreter& run, const Value& self, const Arguments& arguments) {
  const auto [separator, max_splits] = bind(arguments, "split", Names2{"sep", "maxsplit"});
  return split_text(run, self.text(), text_or_null(separator, "split"), integer_or(max_splits, -1, "split"));
}

Value rsplit(Interpreter& run, const Value& self, const Arguments& arguments) {
  const auto [separator, max_splits] = bind(arguments, "rsplit", Names2{"sep", "maxsplit"});
  const std::string* sep = text_or_null(separator, "rsplit");
  const int64_t limit = integer_or(max_splits, -1, "rsplit");
  if (limit < 0) return split_text(run, self.text(), sep, -1);
  if (sep == nullptr || sep->empty()) fail("rsplit: expected a separator, got none");
  std::vector<Value> parts;
  std::string_view text = self.text();
  while (static_cast<int64_t>(parts.size()) < limit) {
    run.budget().work((text.size() + 128) * sep->size());  // rfind may compare all of it at every place
    const std::size_t at = text.rfind(*sep);
    if (at == std::string_view::npos) break;
    parts.push_back(run.text(std::string(text.substr(at + sep->size()))));
    text = text.substr(0, at);
  }
  parts.push_back(run.text(std::string(text)));
  std::reverse(parts.begin(), parts.end());
  return run.list(std::move(parts));
}

Value split_lines_method(Interpreter& run, const Value& self, const Arguments& arguments) {
  bind_none(arguments, "splitlines");
  run.budget().work(16 * self.text().size());
  std::vector<Value> lines;
  for_each_line(self.text(), [&](std::string_view line) {
    run.budget().step();
    lines.push_back(run.text(std::string(line)));
  });
  return run.list(std::move(lines));
}

// startswith and endswith take one string or a tuple of them.
template <bool kAtEnd>
Value has_affix(Interpreter& run, const Value& self, const Arguments& arguments) {
  const auto [affix] = bind(arguments, kAtEnd ? "endswith" : "startswith", Names1{"affix"}, 1);
  const auto has = [&](const Value& one) {
    const std::string& text = required_text(one, kAtEnd ? "endswith" : "startswith");
    run.budget().work(text.size());
    return kAtEnd ? self.text().ends_with(text) : self.text().starts_with(text);
  };
  if (!affix->is(Kind::list)) return Value(has(*affix));
  return Value(std::any_of(affix->list().items.begin(), affix->list().items.end(), has));
}

template <bool kAtEnd>
Value remove_affix(Interpreter& run, const Value& self, const Arguments& arguments) {
  const auto [affix] = bind(arguments, "removeprefix or removesuffix", Names1{"affix"}, 1);
  const std::string& part = required_text(*affix, "removeprefix or removesuffix");
  std::string_view text = self.text();
  if (kAtEnd && text.ends_with(part)) text.remove_suffix(part.size());
  if (!kAtEnd && text.starts_with(part)) text.remove_prefix(part.size());
  return run.text(std::string(text));
}

template <std::string (*Change)(std::string_view)>
Value changed(Interpreter& run, const Value& self, const Arguments& arguments) {
  bind_none(arguments, "upper, lower, capitalize or title");
  run.budget().work(16 * self.text().size());
  return run.text(Change(self.text()));
}

std::string titled(std::string_view text) {
  std::string result;
  bool in_word = false;
  for (std::size_t i = 0; i < text.size(); i += character_bytes(text[i])) {
    const std::string_view character = text.substr(i, character_bytes(text[i]));
    result += in_word ? to_lower(character) : to_upper(character);
    in_word = is_letter(first_character(character));
  }
  return result;
}

template <bool (*Is)(uint32_t)>
Value all_characters(Interpreter& run, const Value& self, const Arguments& arguments) {
  bind_none(arguments, "isalpha, isdigit or isspace");
  const std::string& text = self.text();
  run.budget().work(16 * text.size());
  bool all = !text.empty();
  for (std::size_t i = 0; i < text.size() && all; i += character_bytes(text[i])) {
    all = Is(first_character(std::string_view(text).substr(i)));
  }
  return Value(all);
}

Value replace(Interpreter& run, const Value& self, const Arguments& arguments) {
  const auto [old_text, new_text, count] = bind(arguments, "replace", Names3{"old", "new", "count"}, 2);
  return run.text(replaced(run.budget(), self.text(), required_text(*old_text, "replace"),
                           required_text(*new_text, "replace"), integer_or(count, -1, "replace")));
}

template <bool kMustExist>
Value find(Interpreter& run, const Value& self, const Arguments& arguments) {
  const auto [part] = bind(arguments, kMustExist ? "index" : "find", Names1{"sub"}, 1);
  run.budget().work(8 * self.text().size());
  const std::size_t at = find_bytes(self.text(), required_text(*part, "find"), 0);
  if (at != std::string_view::npos) return Value(static_cast<int64_t>(num_characters(self.text().substr(0, at))));
  if (kMustExist) fail("index: expected a part of the string, got something else");
  return Value(int64_t{-1});
}

Value count_text(Interpreter& run, const Value& self, const Arguments& arguments) {
  const auto [part] = bind(arguments, "count", Names1{"sub"}, 1);
  const std::string& text = required_text(*part, "count");
  run.budget().work(8 * self.text().size());
  if (text.empty()) return Value(static_cast<int64_t>(num_characters(self.text())) + 1);
  int64_t count = 0;
  for (std::size_t at = 0; (at = find_bytes(self.text(), text, at)) != std::string_view::npos; at += text.size()) ++count;
  run.budget().step(count / 4);
  return Value(count);
}

Value join(Interpreter& run, const Value& self, const Arguments& arguments) {
  const auto [parts] = bind(arguments, "join", Names1{"iterable"}, 1);
  Text text(run.budget());
  bool is_first = true;
  for (const Value& part : iterate(*parts, run.budget())) {
    if (!is_first) text.append(self.text());
    is_first = false;
    text.append(required_text(part, "join"));
    run.budget().step();
  }
  return run.text(text.take());
}

template <bool kFromEnd>
Value partition(Interpreter& run, const Value& self, const Arguments& arguments) {
  const auto [separator] = bind(arguments, "partition", Names1{"sep"}, 1);
  const std::string& sep = required_text(*separator, "partition");
  if (sep.empty()) fail("partition: expected a separator, got an empty string");
  const std::string& text = self.text();
  run.budget().work(text.size() * (kFromEnd ? sep.size() : 8));  // rfind may compare all of it at every place
  const std::size_t at = kFromEnd ? text.rfind(sep) : find_bytes(text, sep, 0);
  if (at == std::string::npos) {
    return kFromEnd ? run.tuple({run.text(""), run.text(""), self}) : run.tuple({self, run.text(""), run.text("")});
  }
  return run.tuple({run.text(text.substr(0, at)), run.text(sep), run.text(text.substr(at + sep.size()))});
}

Value list_index(Interpreter& run, const Value& self, const Arguments& arguments) {
  const auto [value] = bind(arguments, "index", Names1{"value"}, 1);
  const std::vector<Value>& items = self.list().items;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (equals(items[i], *value, run.budget())) return Value(static_cast<int64_t>(i));
  }
  fail("index: expected a value of the list, got another");
}

Value list_count(Interpreter& run, const Value& self, const Arguments& arguments) {
  const auto [value] = bind(arguments, "count", Names1{"value"}, 1);
  const std::vector<Value>& items = self.list().items;
  return Value(static_cast<int64_t>(std::count_if(
      items.begin(), items.end(), [&, wanted = value](const Value& item) { return equals(item, *wanted, run.budget()); })));
}

Value copy(Interpreter&, const Value& self, const Arguments& arguments) {
  bind_none(arguments, "copy");
  return self;  // values do not change
}

Value dict_get(Interpreter& run, const Value& self, const Arguments& arguments) {
  const auto [key, otherwise] = bind(arguments, "get", Names2{"key", "default"}, 1);
  for (const auto& [name, value] : self.dict().items) {
    if (equals(name, *key, run.budget())) return value;
  }
  return otherwise != nullptr ? *otherwise : Value(Value::None{});
}

enum class Part { keys, values, items };
template <Part kPart>
Value dict_view(Interpreter& run, const Value& self, const Arguments& arguments) {
  bind_none(arguments, "keys, values or items");
  std::vector<Value> parts;
  run.budget().step(static_cast<int64_t>(self.dict().items.size()));
  for (const auto& [key, value] : self.dict().items) {
    if (kPart == Part::items) {
      parts.push_back(run.tuple({key, value}));
    } else {
      parts.push_back(kPart == Part::keys ? key : value);
    }
  }
  return make_list(&run.budget(), Form::view, std::move(parts));
}

constexpr Method kStringMethods[] = {
    {"capitalize", changed<capitalized>},
    {"count", count_text},
    {"endswith", has_affix<true>},
    {"find", find<false>},
    {"index", find<true>},
    {"isalpha", all_characters<is_letter>},
    {"isdigit", all_characters<is_digit>},
    {"isspace", all_characters<is_space>},
    {"join", join},
    {"lower", changed<to_lower>},
    {"lstrip", strip<strip_left>},
    {"partition", partition<false>},
    {"removeprefix", remove_affix<false>},
    {"removesuffix", remove_affix<true>},
    {"replace", replace},
    {"rpartition", partition<true>},
    {"rsplit", rsplit},
    {"rstrip", strip<strip_right>},
    {"split", split},
    {"splitlines", split_lines_method},
    {"startswith", has_affix<false>},
    {"strip", strip<strip_left, strip_right>},
    {"title", changed<titled>},
    {"upper", changed<to_upper>},
};
constexpr Method kListMethods[] = {{"copy", copy}, {"count", list_count}, {"index", list_index}};
constexpr Method kDictMethods[] = {{"copy", copy},
                                   {"get", dict_get},
                                   {"items", dict_view<Part::items>},
                                   {"keys", dict_view<Part::keys>},
                                   {"values", dict_view<Part::values>}};
// These would change their object; Jinja's immutable sandbox refuses them too.
constexpr std::string_view kListChanges[] = {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"};
constexpr std::string_view kDictChanges[] = {"clear", "pop", "popitem", "setdefault", "update"};

template <typename Table>
std::optional<Value> find_in(const Table& table, const Value& object, const std::string& name) {
  for (const Method& method : table) {
    if (method.name == name) return bound(method, object);
  }
  return {};
}

template <typename Table>
std::optional<Value> refuse_change(const Table& table, const Value& object, const std::string& name) {
  if (std::find(std::begin(table), std::end(table), name) == std::end(table)) return {};
  return make_undefined("access to attribute '" + name + "' of '" + std::string(type_name(object)) +
                        "' object is unsafe: values do not change");
}

Value make_range(Interpreter& run, const Value&, const Arguments& arguments) {
  constexpr int64_t kMaxRange = 100000;  // as Jinja's sandbox has it
  const auto [first, second, third] = bind(arguments, "range", Names3{"start", "stop", "step"}, 1);
  for (const Value* value : {first, second, third}) {
    if (value != nullptr && !value->is_whole()) fail("range: expected integers, got a " + std::string(type_name(*value)));
  }
  const int64_t begin = second == nullptr ? 0 : first->whole();
  const int64_t end = second == nullptr ? first->whole() : second->whole();
  const int64_t step = third == nullptr ? 1 : third->whole();
  if (step == 0) fail("range: expected a step other than 0");
  std::vector<Value> items;
  for (int64_t value = begin; step > 0 ? value < end : value > end;) {
    items.emplace_back(value);
    if (static_cast<int64_t>(items.size()) > kMaxRange) {
      fail("range: expected at most " + std::to_string(kMaxRange) + " numbers, got more", StatusCode::resource_exhausted);
    }
    if (__builtin_add_overflow(value, step, &value)) break;
  }
  run.budget().step(static_cast<int64_t>(items.size() / 4));
  return make_list(&run.budget(), Form::range, std::move(items));
}

Value make_namespace(Interpreter& run, const Value&, const Arguments& arguments) {
  Namespace* object = run.new_namespace();
  for (const Value& source : arguments.positional) {
    if (!source.is(Kind::dict))
      fail("namespace: expected members by name or in a dict, got a " + std::string(type_name(source)));
    for (const auto& [key, value] : source.dict().items)
      object->members.emplace_back(required_text(key, "namespace"), value);
  }
  for (const auto& [name, value] : arguments.keywords) {
    const auto known = std::find_if(object->members.begin(), object->members.end(),
                                    [&, key = &name](const auto& m) { return m.first == *key; });
    if (known != object->members.end()) {
      known->second = value;
    } else {
      object->members.emplace_back(name, value);
    }
  }
  return Value(object);
}

Value make_dict_function(Interpreter& run, const Value&, const Arguments& arguments) {
  std::vector<std::pair<Value, Value>> items;
  if (arguments.positional.size() > 1) fail("dict: expected one dict and values by name");
  if (!arguments.positional.empty()) {
    if (!arguments.positional[0].is(Kind::dict)) {
      fail("dict: expected a dict, got a " + std::string(type_name(arguments.positional[0])));
    }
    items = arguments.positional[0].dict().items;
    run.budget().step(static_cast<int64_t>(items.size()));
  }
  for (const auto& [name, value] : arguments.keywords) {
    const auto known = std::find_if(items.begin(), items.end(), [&, key = &name](const auto& item) {
      return item.first.is(Kind::string) && item.first.text() == *key;
    });
    if (known != items.end()) {
      known->second = value;
    } else {
      items.emplace_back(run.text(name), value);
    }
  }
  return make_dict(&run.budget(), std::move(items));
}

Value raise_exception(Interpreter& run, const Value&, const Arguments& arguments) {
  const auto [message] = bind(arguments, "raise_exception", Names1{"message"}, 1);
  fail("the template refuses the conversation: " + to_str(*message, run.budget()));
}

Value strftime_now(Interpreter& run, const Value&, const Arguments& arguments) {
  const auto [format] = bind(arguments, "strftime_now", Names1{"format"}, 1);
  // A character in front tells an empty result from a buffer that is too small.
  const std::string text = "." + required_text(*format, "strftime_now");
  if (text.size() > 256 || text.find('\0') != std::string::npos)
    fail("strftime_now: expected a format of at most 255 characters");
  std::tm time = {};
  const std::time_t seconds = run.now() ? static_cast<std::time_t>(*run.now()) : std::time(nullptr);
  if ((run.now() ? gmtime_r(&seconds, &time) : localtime_r(&seconds, &time)) == nullptr) {
    fail("strftime_now: expected a time that a calendar has, got " + std::to_string(seconds));
  }
  char buffer[16384];
  const std::size_t size = std::strftime(buffer, sizeof buffer, text.c_str(), &time);
  if (size == 0) fail("strftime_now: expected a format of ordinary length, got one that grows too long");
  return run.text(std::string(buffer + 1, size - 1));
}

}  // namespace

std::optional<Value> find_method(const Value& object, const std::string& name) {
  if (object.is(Kind::string)) return find_in(kStringMethods, object, name);
  if (object.is(Kind::dict)) {
    if (auto method = find_in(kDictMethods, object, name)) return method;
    return refuse_change(kDictChanges, object, name);
  }
  if (object.is(Kind::list) && (object.list().form == Form::list || object.list().form == Form::tuple)) {
    if (auto method = find_in(kListMethods, object, name)) return method;
    if (object.list().form == Form::list) return refuse_change(kListChanges, object, name);
  }
  return {};
}

std::vector<std::pair<std::string_view, Value>> global_functions() {
  constexpr Method kFunctions[] = {{"range", make_range},
                                   {"namespace", make_namespace},
                                   {"dict", make_dict_function},
                                   {"raise_exception", raise_exception},
                                   {"strftime_now", strftime_now}};
  std::vector<std::pair<std::string_view, Value>> result;
  for (const Method& function : kFunctions) result.emplace_back(function.name, bound(function, Value()));
  return result;
}

Value split_text(Interpreter& run, const std::string& text, const std::string* separator, int64_t max_splits) {
  Budget& budget = run.budget();
  std::vector<Value> parts;
  const auto may_split = [&] { return max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits; };
  budget.work(8 * text.size());
  const auto add = [&](std::string_view part) {
    budget.step();
    parts.push_back(run.text(std::string(part)));
  };
  if (separator != nullptr) {
    if (separator->empty()) fail("split: expected a separator, got an empty string");
    std::size_t begin = 0;
    while (may_split()) {
      const std::size_t end = find_bytes(text, *separator, begin);
      if (end == std::string_view::npos) break;
      add(std::string_view(text).substr(begin, end - begin));
      begin = end + separator->size();
    }
    add(std::string_view(text).substr(begin));
    return run.list(std::move(parts));
  }
  std::string_view rest = strip_left(text);
  while (!rest.empty()) {
    if (!may_split()) {
      add(strip_right(rest));
      break;
    }
    std::size_t end = 0;
    while (end < rest.size() && !is_space(first_character(rest.substr(end)))) end += character_bytes(rest[end]);
    add(rest.substr(0, end));
    rest = strip_left(rest.substr(end));
  }
  return run.list(std::move(parts));
}

std::string replaced(Budget& budget, const std::string& text, const std::string& old_text, const std::string& new_text,
                     int64_t max_count) {
  Text result(budget);
  int64_t count = 0;
  std::size_t begin = 0;
  const auto may_replace = [&] { return max_count < 0 || count < max_count; };
  if (old_text.empty()) {  // between all characters
    for (; may_replace(); ++count) {
      result.append(new_text);
      budget.step();
      if (begin >= text.size()) break;
      const std::size_t size = character_bytes(text[begin]);
      result.append(std::string_view(text).substr(begin, size));
      begin += size;
    }
    if (begin < text.size()) result.append(std::string_view(text).substr(begin));
    return result.take();
  }
  budget.work(8 * text.size());
  for (; may_replace(); ++count) {
    const std::size_t end = find_bytes(text, old_text, begin);
    if (end == std::string_view::npos) break;
    if ((count & 3) == 0) budget.step();
    result.append(std::string_view(text).substr(begin, end - begin));
    result.append(new_text);
    begin = end + old_text.size();
  }
  result.append(std::string_view(text).substr(begin));
  return result.take();
}

std::string capitalized(std::string_view text) {
  if (text.empty()) return {};
  const std::size_t first = character_bytes(text[0]);
  return to_upper(text.substr(0, first)) + to_lower(text.substr(first));
}

}  // namespace rarefy::model::jinja
