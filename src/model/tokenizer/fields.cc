#include "model/tokenizer/fields.h"

namespace rarefy::model::tokenizer {
namespace {

std::string member_place(std::string_view place, std::string_view key) {
  return place.empty() ? std::string(key) : std::string(place) + "." + std::string(key);
}

Status missing(std::string_view place, std::string_view expected) {
  return Status::data_loss(std::string(place) + ": expected " + std::string(expected) + ", found nothing");
}

}  // namespace

Status unexpected(std::string_view place, std::string_view expected, const Json& got) {
  std::string shown;
  if (got.is_object() || got.is_array()) {
    shown = std::string(got.is_object() ? "an object" : "an array") + " of " + std::to_string(got.size());
  } else {
    shown = brief_value(got);
  }
  return Status::data_loss(std::string(place) + ": expected " + std::string(expected) + ", got " + shown);
}

const Json* find_member(const Json& object, std::string_view key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

Status expect_object(const Json& value, std::string_view place) {
  return value.is_object() ? Status() : unexpected(place, "an object", value);
}

Expected<const Json*> require_array(const Json& object, std::string_view key, std::string_view place) {
  const Json* value = find_member(object, key);
  if (value == nullptr) return missing(member_place(place, key), "an array");
  if (!value->is_array()) return unexpected(member_place(place, key), "an array", *value);
  return value;
}

Expected<const Json*> require_object(const Json& object, std::string_view key, std::string_view place) {
  const Json* value = find_member(object, key);
  if (value == nullptr) return missing(member_place(place, key), "an object");
  if (!value->is_object()) return unexpected(member_place(place, key), "an object", *value);
  return value;
}

Expected<std::string> require_string(const Json& object, std::string_view key, std::string_view place) {
  const Json* value = find_member(object, key);
  if (value == nullptr) return missing(member_place(place, key), "a string");
  if (!value->is_string()) return unexpected(member_place(place, key), "a string", *value);
  return value->get<std::string>();
}

Expected<bool> optional_bool(const Json& object, std::string_view key, bool default_value, std::string_view place) {
  const Json* value = find_member(object, key);
  if (value == nullptr) return default_value;
  if (!value->is_boolean()) return unexpected(member_place(place, key), "true or false", *value);
  return value->get<bool>();
}

Expected<int32_t> token_id(const Json& value, std::string_view place) {
  // Negative numbers are not unsigned to the parser, fractions and numbers above 2^64 are not integers.
  if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{kMaxTokenId}) {
    return unexpected(place, "a token id from 0 to " + std::to_string(kMaxTokenId), value);
  }
  return static_cast<int32_t>(value.get<uint64_t>());
}

Status unknown_kind(std::string_view place, std::string_view kind, std::initializer_list<std::string_view> supported) {
  std::string list;
  for (const std::string_view name : supported) list += (list.empty() ? "" : ", ") + std::string(name);
  return Status::unsupported(std::string(place) + ": expected one of " + list + ", got '" + brief(kind) +
                             "', which this version does not support");
}

}  // namespace rarefy::model::tokenizer
