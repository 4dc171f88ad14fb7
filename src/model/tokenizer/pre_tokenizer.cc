#include "model/tokenizer/pre_tokenizer.h"

#include <string>
#include <utility>

#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/fields.h"
#include "model/tokenizer/split.h"

namespace rarefy::model::tokenizer {
namespace {

// What ByteLevel cuts with when it is asked to (use_regex), as GPT-2 did.
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

class Split final : public PreTokenizer {
 public:
  Split(Regex regex, SplitBehavior behavior, bool invert)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}

  Status split(std::string_view text, RegexScratch& scratch, PieceSink& out) const override {
    std::vector<Range> matches;
    RAREFY_RETURN_IF_ERROR(regex_.find_all(text, scratch, matches));
    for (const Range& range : split_ranges(matches, text.size(), behavior_, invert_)) {
      if (range.begin == range.end) continue;
      RAREFY_RETURN_IF_ERROR(out.accept(text.substr(range.begin, range.end - range.begin)));
    }
    return {};
  }

 private:
  Regex regex_;
  SplitBehavior behavior_;
  bool invert_;
};

// Puts a space in front where there is none.
class PrefixSpace final : public PreTokenizer {
 public:
  Status split(std::string_view text, RegexScratch&, PieceSink& out) const override {
    if (text.starts_with(' ')) return out.accept(text);
    std::string spaced(1, ' ');
    spaced += text;
    return out.accept(spaced);
  }
};

class ByteCharacters final : public PreTokenizer {
 public:
  Status split(std::string_view text, RegexScratch&, PieceSink& out) const override {
    std::string characters;
    append_byte_characters(text, characters);
    return out.accept(characters);
  }
};

Status append_split(const Json& value, std::string_view place, PreTokenizers& out) {
  RAREFY_ASSIGN_OR_RETURN(const std::string name, require_string(value, "behavior", place));
  const auto behavior = split_behavior(name);
  if (!behavior) {
    return unknown_kind(std::string(place) + ".behavior", name,
                        {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"});
  }
  RAREFY_ASSIGN_OR_RETURN(const bool invert, optional_bool(value, "invert", false, place));
  RAREFY_ASSIGN_OR_RETURN(const Json* pattern, require_object(value, "pattern", place));
  const std::string pattern_place = std::string(place) + ".pattern";
  const bool is_regex = find_member(*pattern, "Regex") != nullptr;
  RAREFY_ASSIGN_OR_RETURN(const std::string text, require_string(*pattern, is_regex ? "Regex" : "String", pattern_place));
  auto regex = is_regex ? Regex::compile(text) : Regex::literal(text);
  if (!regex) return regex.status().with_context(pattern_place);
  out.push_back(std::make_unique<Split>(*std::move(regex), *behavior, invert));
  return {};
}

Status append_byte_level(const Json& value, std::string_view place, PreTokenizers& out) {
  RAREFY_ASSIGN_OR_RETURN(const bool add_prefix_space, optional_bool(value, "add_prefix_space", true, place));
  RAREFY_ASSIGN_OR_RETURN(const bool use_regex, optional_bool(value, "use_regex", true, place));
  if (add_prefix_space) out.push_back(std::make_unique<PrefixSpace>());
  if (use_regex) {
    RAREFY_ASSIGN_OR_RETURN(Regex regex, Regex::compile(kByteLevelPattern));
    out.push_back(std::make_unique<Split>(std::move(regex), SplitBehavior::isolated, false));
  }
  out.push_back(std::make_unique<ByteCharacters>());
  return {};
}

Status append_digits(const Json& value, std::string_view place, PreTokenizers& out) {
  RAREFY_ASSIGN_OR_RETURN(const bool individual, optional_bool(value, "individual_digits", false, place));
  RAREFY_ASSIGN_OR_RETURN(Regex regex, Regex::compile(R"(\p{N})"));
  out.push_back(
      std::make_unique<Split>(std::move(regex), individual ? SplitBehavior::isolated : SplitBehavior::contiguous, false));
  return {};
}

Status append(const Json& value, std::string_view place, PreTokenizers& out) {
  RAREFY_RETURN_IF_ERROR(expect_object(value, place));
  RAREFY_ASSIGN_OR_RETURN(const std::string kind, require_string(value, "type", place));
  if (kind == "Split") return append_split(value, place, out);
  if (kind == "ByteLevel") return append_byte_level(value, place, out);
  if (kind == "Digits") return append_digits(value, place, out);
  if (kind == "Sequence") {
    RAREFY_ASSIGN_OR_RETURN(const Json* list, require_array(value, "pretokenizers", place));
    for (std::size_t i = 0; i < list->size(); ++i) {
      RAREFY_RETURN_IF_ERROR(append((*list)[i], std::string(place) + ".pretokenizers[" + std::to_string(i) + "]", out));
    }
    return {};
  }
  return unknown_kind(std::string(place) + ".type", kind, {"Split", "ByteLevel", "Digits", "Sequence"});
}

// Sends what it gets through the steps that remain.
class Chain final : public PieceSink {
 public:
  Chain(std::span<const std::unique_ptr<PreTokenizer>> steps, RegexScratch& scratch, PieceSink& last)
      : steps_(steps), scratch_(scratch), last_(last) {}

  Status accept(std::string_view piece) override {
    if (steps_.empty()) return last_.accept(piece);
    Chain rest(steps_.subspan(1), scratch_, last_);
    return steps_.front()->split(piece, scratch_, rest);
  }

 private:
  std::span<const std::unique_ptr<PreTokenizer>> steps_;
  RegexScratch& scratch_;
  PieceSink& last_;
};

}  // namespace

Expected<PreTokenizers> parse_pre_tokenizers(const Json& value, std::string_view place) {
  // A chain of 64 cuts deeper than any published one; each is a level of recursion.
  constexpr std::size_t kMaxSteps = 64;
  PreTokenizers steps;
  if (!value.is_null()) RAREFY_RETURN_IF_ERROR(append(value, place, steps));
  if (steps.size() > kMaxSteps) {
    return Status::unsupported(std::string(place) + ": expected at most " + std::to_string(kMaxSteps) + " steps, got " +
                               std::to_string(steps.size()));
  }
  return steps;
}

Status pre_tokenize(std::span<const std::unique_ptr<PreTokenizer>> steps, std::string_view text, RegexScratch& scratch,
                    PieceSink& out) {
  if (text.empty()) return {};
  return Chain(steps, scratch, out).accept(text);
}

}  // namespace rarefy::model::tokenizer
