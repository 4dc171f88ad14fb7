// JSON to values of the template language, members in their order.
#pragma once

#include <string_view>

#include "model/jinja/value.h"

namespace rarefy::model::jinja {

// Throws TemplateError; `where` names the text in messages ("tools"). At most 64 levels; integers of at most 64 bits.
Value parse_json_value(std::string_view json, std::string_view where, Budget& budget);

}  // namespace rarefy::model::jinja
