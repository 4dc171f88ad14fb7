// Pattern: what a step of tokenizer.json looks for: a literal text, a known pattern that is matched by hand, or a regular
// expression. Immutable and shareable between threads; the scratch belongs to one thread at a time.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/json_file.h"
#include "model/tokenizer/known_patterns.h"
#include "model/tokenizer/regex.h"
#include "rarefy/core/status.h"

namespace rarefy::model::tokenizer {

class Pattern {
 public:
  // The member "pattern" of `step`: {"String": ".."} or {"Regex": ".."}.
  static Expected<Pattern> parse(const Json& step, std::string_view place);
  static Expected<Pattern> regex(std::string_view pattern);
  static Expected<Pattern> literal(std::string_view text);

  // Appends every match, left to right. Pre: text is UTF-8.
  Status find_all(std::string_view text, RegexScratch& scratch, std::vector<Range>& matches) const;
  // Of a known pattern, whose matches cover any text; else null.
  PieceEnd piece_end() const { return piece_end_; }

 private:
  Pattern() = default;
  PieceEnd piece_end_ = nullptr;
  std::string literal_;  // empty: none
  std::optional<Regex> regex_;
};

}  // namespace rarefy::model::tokenizer
