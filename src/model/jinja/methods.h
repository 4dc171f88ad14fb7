// The methods that strings, lists and dicts have in the language, and its global functions.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/jinja/value.h"

namespace rarefy::model::jinja {

// A method bound to its object, an undefined value that says why (methods that would change the object), or nothing.
std::optional<Value> find_method(const Value& object, const std::string& name);

// range, namespace, dict, raise_exception, strftime_now.
std::vector<std::pair<std::string_view, Value>> global_functions();

// Used by filters as well.
Value split_text(Interpreter& run, const std::string& text, const std::string* separator, int64_t max_splits);
std::string replaced(Budget& budget, const std::string& text, const std::string& old_text, const std::string& new_text,
                     int64_t max_count);
std::string capitalized(std::string_view text);

}  // namespace rarefy::model::jinja
