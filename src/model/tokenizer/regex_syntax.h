// Translation of regular expressions from the dialect of tokenizer.json (Oniguruma, Unicode 16) to PCRE2, so that both match
// the same text. What has no equal counterpart is refused by name. A free function without state.
#pragma once

#include <string>
#include <string_view>

#include "rarefy/core/status.h"

namespace rarefy::model::tokenizer {

// What differs and is rewritten: \s and \S (White_Space; PCRE2 adds U+180E), \w and \W, \b and \B (their idea of a word), \h
// (a hexadecimal digit), \v (one control character), \p{..} and \P{..} (characters of Unicode 15 and 16 in categories; scripts keep PCRE2's Unicode), (?m)
// (dot matches a newline). Refused: set operations and nested sets, POSIX brackets, \X, subroutine calls, verbs,
// comments, conditions, inline flags other than i and m, `{n,m}+`, `{,n}`.
Expected<std::string> to_pcre2_syntax(std::string_view pattern);

}  // namespace rarefy::model::tokenizer
