// Template text to a tree. Throws TemplateError with line and reason; filters and tests that are not offered are refused here,
// by name, and so is nesting that is too deep.
#pragma once

#include <string_view>

#include "model/jinja/ast.h"

namespace rarefy::model::jinja {

Tree parse_template(std::string_view source);

}  // namespace rarefy::model::jinja
