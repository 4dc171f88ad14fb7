#include "model/tokenizer/added_tokens.h"

#include <algorithm>
#include <utility>

#include "model/tokenizer/character_class.h"
#include "model/tokenizer/fields.h"
#include "model/tokenizer/utf8.h"

namespace rarefy::model::tokenizer {
namespace {

std::size_t leading_white_space(std::string_view text) {
  std::size_t end = 0;
  while (end < text.size()) {
    const Utf8Step step = utf8_step(text.substr(end));
    if (!is_white_space(step.code_point)) break;
    end += step.num_bytes;
  }
  return end;
}

// Where the white space at the end of `text` starts.
std::size_t trailing_white_space(std::string_view text) {
  while (!text.empty()) {
    const std::size_t start = last_character(text);
    if (!is_white_space(utf8_step(text.substr(start)).code_point)) break;
    text = text.substr(0, start);
  }
  return text.size();
}

// A character of a word as the engine that `tokenizers` uses here sees it: unlike Oniguruma's \w with joiners and without the
// superscripts and fractions of Latin-1.
constexpr std::string_view kWordCharacter = R"((?:(?![\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}])[\w\x{200c}\x{200d}]))";

Expected<bool> matches(const Regex& regex, std::string_view text, RegexScratch& scratch) {
  std::vector<Range> found;
  RAREFY_RETURN_IF_ERROR(regex.find_all(text, scratch, found));
  return !found.empty();
}

}  // namespace

void PrefixTree::add(std::string_view text, int32_t value) {
  if (text.empty()) return;
  starts_[static_cast<uint8_t>(text[0])] = true;
  int32_t node = 0;
  for (const char c : text) {
    const auto [it, is_new] = nodes_[node].children.try_emplace(c, static_cast<int32_t>(nodes_.size()));
    node = it->second;
    if (is_new) nodes_.emplace_back();
  }
  if (nodes_[node].value < 0) nodes_[node].value = value;
}

PrefixTree::Match PrefixTree::longest(std::string_view text) const {
  Match match;
  int32_t node = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto it = nodes_[node].children.find(text[i]);
    if (it == nodes_[node].children.end()) break;
    node = it->second;
    if (nodes_[node].value >= 0) match = {nodes_[node].value, i + 1};
  }
  return match;
}

Expected<AddedToken> AddedTokens::parse_one(const Json& value, std::string_view place) {
  RAREFY_RETURN_IF_ERROR(expect_object(value, place));
  AddedToken token;
  RAREFY_ASSIGN_OR_RETURN(token.content, require_string(value, "content", place));
  const Json* id = find_member(value, "id");
  if (id == nullptr) return Status::data_loss(std::string(place) + ".id: expected a token id, found nothing");
  RAREFY_ASSIGN_OR_RETURN(token.id, token_id(*id, std::string(place) + ".id"));
  RAREFY_ASSIGN_OR_RETURN(token.special, optional_bool(value, "special", false, place));
  RAREFY_ASSIGN_OR_RETURN(token.normalized, optional_bool(value, "normalized", !token.special, place));
  RAREFY_ASSIGN_OR_RETURN(token.single_word, optional_bool(value, "single_word", false, place));
  RAREFY_ASSIGN_OR_RETURN(token.lstrip, optional_bool(value, "lstrip", false, place));
  RAREFY_ASSIGN_OR_RETURN(token.rstrip, optional_bool(value, "rstrip", false, place));
  if (token.content.empty() || token.content.size() > PrefixTree::kMaxStringBytes) {
    return Status::data_loss(std::string(place) + ".content: expected 1 to " + std::to_string(PrefixTree::kMaxStringBytes) +
                             " bytes, got " + std::to_string(token.content.size()));
  }
  return token;
}

Expected<AddedTokens> AddedTokens::parse(const Json* value, std::string_view place, const Vocabulary& model_vocabulary,
                                         std::span<const std::unique_ptr<Normalizer>> normalizers) {
  AddedTokens added;
  RAREFY_ASSIGN_OR_RETURN(RegexScratch scratch, RegexScratch::make());
  if (value == nullptr) return added;
  if (!value->is_array()) return unexpected(place, "an array", *value);
  bool any_single_word = false;
  for (std::size_t i = 0; i < value->size(); ++i) {
    const std::string token_place = std::string(place) + "[" + std::to_string(i) + "]";
    RAREFY_ASSIGN_OR_RETURN(AddedToken token, parse_one((*value)[i], token_place));
    const std::string* holder = model_vocabulary.token(token.id);
    const int32_t model_id = model_vocabulary.id(token.content);
    std::string pattern = token.content;
    if (token.normalized) {
      RAREFY_ASSIGN_OR_RETURN(pattern, normalize(normalizers, std::move(pattern), scratch));
    }
    // As in `tokenizers`, such a token decodes to its normalised content.
    const bool clashes = (holder != nullptr && *holder != token.content) || (model_id >= 0 && model_id != token.id);
    if (clashes || !added.vocabulary_.add(token.content, token.id, pattern)) {
      return Status::data_loss(token_place + ": expected an id and a content of its own, got " + std::to_string(token.id) +
                               " for '" + brief(token.content) + "', one of which another token has");
    }
    if (token.special) added.special_.insert(token.content);
    any_single_word = any_single_word || token.single_word;
    (token.normalized ? added.normalized_ : added.raw_).add(pattern, static_cast<int32_t>(i));
    added.tokens_.push_back(std::move(token));
  }
  if (any_single_word) {
    RAREFY_ASSIGN_OR_RETURN(Regex before, Regex::compile(std::string(kWordCharacter) + "\\z"));
    RAREFY_ASSIGN_OR_RETURN(Regex after, Regex::compile("\\A" + std::string(kWordCharacter)));
    added.word_before_.push_back(std::move(before));
    added.word_after_.push_back(std::move(after));
  }
  return added;
}

Expected<std::vector<Segment>> AddedTokens::split(std::string_view text, Stage stage, bool parse_special,
                                                  RegexScratch& scratch) const {
  const PrefixTree& tree = stage == Stage::raw ? raw_ : normalized_;
  std::vector<Segment> segments;
  const auto add_text = [&](std::size_t begin, std::size_t end) {
    if (begin < end) segments.push_back({-1, text.substr(begin, end - begin)});
  };
  std::size_t text_begin = 0;
  for (std::size_t at = 0; !tree.empty() && at < text.size();) {
    if (!tree.may_start_with(text[at])) {
      ++at;
      continue;
    }
    const PrefixTree::Match match = tree.longest(text.substr(at));
    if (match.value < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[match.value];
    std::size_t begin = at, end = at + match.num_bytes;
    at = end;
    if (token.special && !parse_special) continue;
    if (token.single_word) {
      bool inside_word = false;
      if (begin > 0) {
        const std::string_view before = text.substr(0, begin);
        RAREFY_ASSIGN_OR_RETURN(inside_word, matches(word_before_[0], before.substr(last_character(before)), scratch));
      }
      if (!inside_word && end < text.size()) {
        const std::string_view after = text.substr(end);
        RAREFY_ASSIGN_OR_RETURN(inside_word, matches(word_after_[0], after.substr(0, utf8_step(after).num_bytes), scratch));
      }
      if (inside_word) continue;
    }
    // White space that the token before took along is taken already.
    if (token.lstrip) begin = std::max(trailing_white_space(text.substr(0, begin)), text_begin);
    if (token.rstrip) end += leading_white_space(text.substr(end));
    add_text(text_begin, begin);
    segments.push_back({token.id, text.substr(begin, end - begin)});
    text_begin = end;
  }
  add_text(text_begin, text.size());
  return segments;
}

}  // namespace rarefy::model::tokenizer
