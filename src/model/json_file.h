// Reading JSON that comes from outside: size limit, depth limit, duplicate keys refused, errors as Status with the place.
#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "rarefy/core/status.h"

namespace rarefy::model {

using Json = nlohmann::json;

// A whole file, at most `max_bytes` of it.
Expected<std::string> read_text_file(const std::filesystem::path& path, std::size_t max_bytes);

// Parses one JSON value. Refuses nesting deeper than 64 levels and objects that name a key twice.
Expected<Json> parse_json(std::string_view text);

// Reads and parses; messages start with the file's path.
Expected<Json> read_json_file(const std::filesystem::path& path);

// A value as it may appear in a message: at most 60 characters.
std::string brief_value(const Json& value);
// Text from outside as it may appear in a message: at most 120 bytes, control characters replaced.
std::string brief(std::string_view text);

}  // namespace rarefy::model
