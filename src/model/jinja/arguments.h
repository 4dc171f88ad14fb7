// What a call passes: values by position and by name, and how a function of the language takes them.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "model/jinja/value.h"

namespace rarefy::model::jinja {

struct Arguments {
  std::vector<Value> positional = {};
  std::vector<std::pair<std::string, Value>> keywords = {};
};

// Arguments in the order of `names`; null where none was given. Fails on unknown, surplus, repeated and missing ones.
template <std::size_t N>
std::array<const Value*, N> bind(const Arguments& arguments, std::string_view function,
                                 const std::array<std::string_view, N>& names, std::size_t num_required = 0) {
  std::array<const Value*, N> bound = {};
  if (arguments.positional.size() > N) {
    fail(std::string(function) + ": expected at most " + std::to_string(N) + " arguments, got " +
         std::to_string(arguments.positional.size()));
  }
  for (std::size_t i = 0; i < arguments.positional.size(); ++i) bound[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.keywords) {
    std::size_t i = 0;
    while (i < N && names[i] != name) ++i;
    if (i == N) fail(std::string(function) + ": expected no argument '" + name + "'");
    if (bound[i] != nullptr) fail(std::string(function) + ": expected argument '" + name + "' once, got it twice");
    bound[i] = &value;
  }
  for (std::size_t i = 0; i < num_required; ++i) {
    if (bound[i] == nullptr)
      fail(std::string(function) + ": expected an argument '" + std::string(names[i]) + "', got none");
  }
  return bound;
}

inline void bind_none(const Arguments& arguments, std::string_view function) {
  bind<0>(arguments, function, std::array<std::string_view, 0>{});
}

// An argument as what it must be; the default when it is null or, for text and integers, None.
bool flag_or(const Value* value, bool otherwise);
int64_t integer_or(const Value* value, int64_t otherwise, std::string_view what);
const std::string* text_or_null(const Value* value, std::string_view what);
const std::string& required_text(const Value& value, std::string_view what);

}  // namespace rarefy::model::jinja
