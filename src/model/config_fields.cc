#include "model/config_fields.h"

#include <cmath>
#include <limits>

namespace rarefy::model {
namespace {

// Shortest text that reads well in a message: 1e-06, 262144, 0.5.
std::string plain(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

bool as_int32(const Json& value, int32_t& out) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<std::uint64_t>();
    if (number > static_cast<std::uint64_t>(std::numeric_limits<int32_t>::max())) return false;
    out = static_cast<int32_t>(number);
    return true;
  }
  if (value.is_number_integer()) {
    const auto number = value.get<std::int64_t>();
    if (number < std::numeric_limits<int32_t>::min()) return false;
    out = static_cast<int32_t>(number);
    return true;
  }
  return false;
}

}  // namespace

const Json* Fields::find(std::string_view key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void Fields::fail(std::string message) {
  if (status_.ok()) status_ = Status::invalid_argument(std::move(message));
}

void Fields::expected(std::string_view key, const std::string& what, const Json& got) {
  fail("expected " + std::string(key) + " to be " + what + ", got " + brief_value(got));
}

int32_t Fields::integer(std::string_view key, int32_t fallback, int32_t min, int32_t max) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  int32_t result = 0;
  if (!as_int32(*value, result) || result < min || result > max) {
    expected(key, "a whole number from " + std::to_string(min) + " to " + std::to_string(max), *value);
    return fallback;
  }
  return result;
}

double Fields::number(std::string_view key, double fallback, double min, double max) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  const double result = value->is_number() ? value->get<double>() : std::numeric_limits<double>::quiet_NaN();
  if (!(result >= min && result <= max)) {
    expected(key, "a number from " + plain(min) + " to " + plain(max), *value);
    return fallback;
  }
  return result;
}

bool Fields::boolean(std::string_view key, bool fallback) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    expected(key, "true or false", *value);
    return fallback;
  }
  return value->get<bool>();
}

std::string Fields::text(std::string_view key, std::string_view fallback) {
  const Json* value = find(key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) {
    expected(key, "a string", *value);
    return std::string(fallback);
  }
  return value->get<std::string>();
}

std::vector<int32_t> Fields::ids(std::string_view key) {
  const Json* value = find(key);
  if (value == nullptr) return {};
  std::vector<int32_t> result;
  const auto add = [&](const Json& id) {
    int32_t number = 0;
    const bool good = as_int32(id, number) && number >= 0;
    if (good) result.push_back(number);
    return good;
  };
  bool good = true;
  if (value->is_array()) {
    for (const Json& id : *value) good = good && add(id);
  } else {
    good = add(*value);
  }
  if (!good) expected(key, "a token id or a list of token ids", *value);
  return result;
}

}  // namespace rarefy::model
