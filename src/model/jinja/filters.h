// The filters of the language: `value | name(arguments)`.
#pragma once

#include <string_view>

#include "model/jinja/arguments.h"

namespace rarefy::model::jinja {

struct Filter {
  using Function = Value (*)(Interpreter&, const Value& input, const Arguments&);
  std::string_view name;
  Function function;
};

const Filter* find_filter(std::string_view name);  // null when it is not offered

// In files of their own, by what they work on.
Value filter_tojson(Interpreter& run, const Value& input, const Arguments& arguments);
std::vector<Filter> text_filters();
std::vector<Filter> sequence_filters();

}  // namespace rarefy::model::jinja
