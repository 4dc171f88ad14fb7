#include "model/tokenizer/pre_tokenizer.h"

#include <span>
#include <string>
#include <utility>

#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/fields.h"
#include "model/tokenizer/pattern.h"
#include "model/tokenizer/split.h"

namespace rarefy::model::tokenizer {
namespace {

class Split final : public PreTokenizer {
 public:
  Split(Pattern pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  Status split(std::string_view text, RegexScratch& scratch, PieceSink& out) const override {
    if (const PieceEnd piece_end = pattern_.piece_end(); piece_end != nullptr && behavior_ == SplitBehavior::isolated) {
      for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = piece_end(text, at);
        RAREFY_RETURN_IF_ERROR(out.accept(text.substr(at, end - at)));
        at = end;
      }
      return {};
    }
    std::vector<Range> matches;
    RAREFY_RETURN_IF_ERROR(pattern_.find_all(text, scratch, matches));
    for (const Range& range : split_ranges(matches, text.size(), behavior_, invert_)) {
      if (range.begin == range.end) continue;
      RAREFY_RETURN_IF_ERROR(out.accept(text.substr(range.begin, range.end - range.begin)));
    }
    return {};
  }

 private:
  Pattern pattern_;
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

// Reads the steps of a file one after the other.
class Reader {
 public:
  explicit Reader(std::string_view split_pattern) : split_pattern_(split_pattern) {}

  Status append(const Json& value, std::string_view place) {
    RAREFY_RETURN_IF_ERROR(expect_object(value, place));
    RAREFY_ASSIGN_OR_RETURN(const std::string kind, require_string(value, "type", place));
    if (kind == "Split") return append_split(value, place);
    if (kind == "ByteLevel") return append_byte_level(value, place);
    if (kind == "Digits") return append_digits(value, place);
    if (kind != "Sequence") {
      return unknown_kind(std::string(place) + ".type", kind, {"Split", "ByteLevel", "Digits", "Sequence"});
    }
    RAREFY_ASSIGN_OR_RETURN(const Json* list, require_array(value, "pretokenizers", place));
    for (std::size_t i = 0; i < list->size(); ++i) {
      RAREFY_RETURN_IF_ERROR(append((*list)[i], std::string(place) + ".pretokenizers[" + std::to_string(i) + "]"));
    }
    return {};
  }

  Expected<PreTokenizers> finish(std::string_view place) {
    // A chain of 64 cuts deeper than any published one; each is a level of recursion.
    constexpr std::size_t kMaxSteps = 64;
    if (result_.steps.size() > kMaxSteps) {
      return Status::unsupported(std::string(place) + ": expected at most " + std::to_string(kMaxSteps) + " steps, got " +
                                 std::to_string(result_.steps.size()));
    }
    if (!split_pattern_.empty()) {
      return Status::invalid_argument(std::string(place) +
                                      ": expected a step of type Split, whose pattern split_pattern replaces, found none");
    }
    return std::move(result_);
  }

 private:
  void add(std::unique_ptr<PreTokenizer> step) {
    if (result_.byte_level) result_.steps.push_back(std::make_unique<ByteCharacters>());  // it was not the last one
    result_.byte_level = false;
    result_.steps.push_back(std::move(step));
  }

  Status append_split(const Json& value, std::string_view place) {
    RAREFY_ASSIGN_OR_RETURN(const std::string name, require_string(value, "behavior", place));
    const auto behavior = split_behavior(name);
    if (!behavior) {
      return unknown_kind(std::string(place) + ".behavior", name,
                          {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"});
    }
    RAREFY_ASSIGN_OR_RETURN(const bool invert, optional_bool(value, "invert", false, place));
    const std::string_view replacement = std::exchange(split_pattern_, {});
    auto pattern = replacement.empty() ? Pattern::parse(value, place) : Pattern::regex(replacement);
    if (!pattern) return replacement.empty() ? pattern.status() : pattern.status().with_context("split_pattern");
    add(std::make_unique<Split>(*std::move(pattern), *behavior, invert));
    return {};
  }

  Status append_byte_level(const Json& value, std::string_view place) {
    RAREFY_ASSIGN_OR_RETURN(const bool add_prefix_space, optional_bool(value, "add_prefix_space", true, place));
    RAREFY_ASSIGN_OR_RETURN(const bool use_regex, optional_bool(value, "use_regex", true, place));
    if (add_prefix_space) add(std::make_unique<PrefixSpace>());
    if (use_regex) {
      RAREFY_ASSIGN_OR_RETURN(Pattern pattern, Pattern::regex(kGpt2Pattern));
      add(std::make_unique<Split>(std::move(pattern), SplitBehavior::isolated, false));
    }
    if (result_.byte_level) result_.steps.push_back(std::make_unique<ByteCharacters>());
    result_.byte_level = true;
    return {};
  }

  Status append_digits(const Json& value, std::string_view place) {
    RAREFY_ASSIGN_OR_RETURN(const bool individual, optional_bool(value, "individual_digits", false, place));
    RAREFY_ASSIGN_OR_RETURN(Pattern pattern, Pattern::regex(R"(\p{N})"));
    add(std::make_unique<Split>(std::move(pattern), individual ? SplitBehavior::isolated : SplitBehavior::contiguous,
                                false));
    return {};
  }

  std::string_view split_pattern_;
  PreTokenizers result_;
};

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

Expected<PreTokenizers> parse_pre_tokenizers(const Json& value, std::string_view place, std::string_view split_pattern) {
  Reader reader(split_pattern);
  if (!value.is_null()) RAREFY_RETURN_IF_ERROR(reader.append(value, place));
  return reader.finish(place);
}

Status pre_tokenize(const PreTokenizers& pre_tokenizers, std::string_view text, RegexScratch& scratch, PieceSink& out) {
  if (text.empty()) return {};
  return Chain(pre_tokenizers.steps, scratch, out).accept(text);
}

}  // namespace rarefy::model::tokenizer
