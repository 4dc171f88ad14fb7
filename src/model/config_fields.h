// Fields: typed, range-checked reading of one JSON object of a configuration. A key that is missing or null takes the
// default; anything of another type or out of range is remembered as the first error, so that a reader reads all its keys and
// checks status() once. Not thread-safe; borrows the object.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/json_file.h"
#include "rarefy/core/status.h"

namespace rarefy::model {

class Fields {
 public:
  explicit Fields(const Json& object) : object_(object) {}

  bool has(std::string_view key) const { return find(key) != nullptr; }
  const Json* find(std::string_view key) const;  // null when missing or null

  int32_t integer(std::string_view key, int32_t fallback, int32_t min, int32_t max);
  double number(std::string_view key, double fallback, double min, double max);
  bool boolean(std::string_view key, bool fallback);
  std::string text(std::string_view key, std::string_view fallback);
  // One id or a list of ids; empty when missing.
  std::vector<int32_t> ids(std::string_view key);

  // Remembers a failure that the caller found.
  void fail(std::string message);
  const Status& status() const { return status_; }

 private:
  void expected(std::string_view key, const std::string& what, const Json& got);

  const Json& object_;
  Status status_;
};

}  // namespace rarefy::model
