#include "model/jinja/arguments.h"

#include "model/jinja/operators.h"

namespace rarefy::model::jinja {

bool flag_or(const Value* value, bool otherwise) { return value == nullptr ? otherwise : truthy(*value); }

int64_t integer_or(const Value* value, int64_t otherwise, std::string_view what) {
  if (value == nullptr || value->is(Kind::none)) return otherwise;
  if (!value->is_whole()) fail(std::string(what) + ": expected an integer, got a " + std::string(type_name(*value)));
  return value->whole();
}

const std::string* text_or_null(const Value* value, std::string_view what) {
  if (value == nullptr || value->is(Kind::none)) return nullptr;
  return &required_text(*value, what);
}

const std::string& required_text(const Value& value, std::string_view what) {
  require_defined(value);
  if (!value.is(Kind::string)) fail(std::string(what) + ": expected a string, got a " + std::string(type_name(value)));
  return value.text();
}

}  // namespace rarefy::model::jinja
