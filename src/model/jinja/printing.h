// Values as text: as Python's str and repr write them, and as json.dumps does.
#pragma once

#include <optional>
#include <string>

#include "model/jinja/value.h"

namespace rarefy::model::jinja {

// What `{{ value }}` writes. A string is itself, undefined is nothing.
void append_str(const Value& value, Text& out);
void append_repr(const Value& value, Text& out);
std::string to_str(const Value& value, Budget& budget);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent = {};  // of one level; unset = all on one line
  std::string item_separator = ", ", key_separator = ": ";
};
void append_json(const Value& value, const JsonStyle& style, Text& out);

}  // namespace rarefy::model::jinja
