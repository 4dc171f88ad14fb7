// The tests of the language: `value is name(arguments)`.
#pragma once

#include <string_view>

#include "model/jinja/arguments.h"

namespace rarefy::model::jinja {

struct Test {
  using Function = bool (*)(Interpreter&, const Value& input, const Arguments&);
  std::string_view name;
  Function function;
};

const Test* find_test(std::string_view name);  // null when it is not offered

}  // namespace rarefy::model::jinja
