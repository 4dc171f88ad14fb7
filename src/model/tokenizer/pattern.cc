#include "model/tokenizer/pattern.h"

#include <utility>

#include "model/tokenizer/fields.h"

namespace rarefy::model::tokenizer {

Expected<Pattern> Pattern::parse(const Json& step, std::string_view place) {
  RAREFY_ASSIGN_OR_RETURN(const Json* value, require_object(step, "pattern", place));
  const std::string pattern_place = std::string(place) + ".pattern";
  const bool is_regex = find_member(*value, "Regex") != nullptr;
  RAREFY_ASSIGN_OR_RETURN(const std::string text, require_string(*value, is_regex ? "Regex" : "String", pattern_place));
  auto pattern = is_regex ? regex(text) : literal(text);
  if (!pattern) return pattern.status().with_context(pattern_place);
  return pattern;
}

Expected<Pattern> Pattern::regex(std::string_view pattern) {
  Pattern result;
  result.piece_end_ = known_pattern(pattern);
  if (result.piece_end_ == nullptr) {
    RAREFY_ASSIGN_OR_RETURN(Regex regex, Regex::compile(pattern));
    result.regex_.emplace(std::move(regex));
  }
  return result;
}

Expected<Pattern> Pattern::literal(std::string_view text) {
  Pattern result;
  result.literal_ = text;
  if (text.empty()) {  // matches between all characters: the engine knows the rules for that
    RAREFY_ASSIGN_OR_RETURN(Regex regex, Regex::literal(text));
    result.regex_.emplace(std::move(regex));
  }
  return result;
}

Status Pattern::find_all(std::string_view text, RegexScratch& scratch, std::vector<Range>& matches) const {
  if (regex_) return regex_->find_all(text, scratch, matches);
  std::size_t at = 0;
  if (piece_end_ != nullptr) {
    while (at < text.size()) {
      const std::size_t end = piece_end_(text, at);
      matches.push_back({at, end});
      at = end;
    }
    return {};
  }
  while ((at = text.find(literal_, at)) != std::string_view::npos) {
    matches.push_back({at, at + literal_.size()});
    at += literal_.size();
  }
  return {};
}

}  // namespace rarefy::model::tokenizer
