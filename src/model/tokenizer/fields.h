// Reading tokenizer.json with its schema: each function names the place, what was expected and what came.
// `place` is the path inside the file, such as "model.vocab". Free functions without state.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "model/json_file.h"
#include "rarefy/core/status.h"

namespace rarefy::model::tokenizer {

// Largest id that is accepted; the largest published vocabularies have fewer than 2^19 tokens.
inline constexpr int32_t kMaxTokenId = 1 << 24;

// "place: expected WHAT, got VALUE".
Status unexpected(std::string_view place, std::string_view expected, const Json& got);

// The value of a key; null when it is missing or null. `object` must be an object: the caller has checked.
const Json* find_member(const Json& object, std::string_view key);

Status expect_object(const Json& value, std::string_view place);
// The member's value, or an error that says it is missing. The pointer lives as long as `object`.
Expected<const Json*> require_array(const Json& object, std::string_view key, std::string_view place);
Expected<const Json*> require_object(const Json& object, std::string_view key, std::string_view place);
Expected<std::string> require_string(const Json& object, std::string_view key, std::string_view place);
Expected<bool> optional_bool(const Json& object, std::string_view key, bool default_value, std::string_view place);
Expected<int32_t> token_id(const Json& value, std::string_view place);

// "place: expected one of A, B, C, got 'D'; this kind is not supported".
Status unknown_kind(std::string_view place, std::string_view kind, std::initializer_list<std::string_view> supported);

}  // namespace rarefy::model::tokenizer
