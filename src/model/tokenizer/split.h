// Split: cuts a text at the matches of a regular expression, and what becomes of the matches. Free functions without state.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "model/tokenizer/regex.h"

namespace rarefy::model::tokenizer {

enum class SplitBehavior { isolated, removed, merged_with_previous, merged_with_next, contiguous };

// By its name in tokenizer.json.
std::optional<SplitBehavior> split_behavior(std::string_view name);

// The pieces of a text of `num_bytes` with these matches, some perhaps empty; `invert` exchanges matches and the text between.
std::vector<Range> split_ranges(const std::vector<Range>& matches, std::size_t num_bytes, SplitBehavior behavior,
                                bool invert);

}  // namespace rarefy::model::tokenizer
