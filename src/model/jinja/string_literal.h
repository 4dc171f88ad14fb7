// String literals between their quotes, escapes resolved as Python resolves them.
#pragma once

#include <string>
#include <string_view>

namespace rarefy::model::jinja {

// Throws TemplateError for an escape that is no character.
std::string unescaped(std::string_view literal);

}  // namespace rarefy::model::jinja
