// PostProcessor: what is put before and after the ids of a text, such as a begin-of-text token. A plain value.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "model/json_file.h"
#include "rarefy/core/status.h"

namespace rarefy::model::tokenizer {

struct PostProcessor {
  std::vector<int32_t> prefix;  // [any] i32; ids
  std::vector<int32_t> suffix;  // [any] i32; ids
};

// Kinds: ByteLevel (changes no ids), TemplateProcessing, Sequence; null changes nothing. `is_token` says whether an id exists.
Expected<PostProcessor> parse_post_processor(const Json& value, std::string_view place,
                                             const std::function<bool(int32_t)>& is_token);

}  // namespace rarefy::model::tokenizer
