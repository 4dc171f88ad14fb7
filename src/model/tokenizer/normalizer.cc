#include "model/tokenizer/normalizer.h"

#include <utility>

#include "model/tokenizer/character_class.h"
#include "model/tokenizer/fields.h"
#include "model/tokenizer/nfc.h"
#include "model/tokenizer/pattern.h"
#include "model/tokenizer/utf8.h"

namespace rarefy::model::tokenizer {
namespace {

using Normalizers = std::vector<std::unique_ptr<Normalizer>>;

class Nfc final : public Normalizer {
 public:
  Expected<std::string> normalize(std::string text, std::size_t, RegexScratch&) const override {
    return to_nfc(std::move(text));
  }
};

class Replace final : public Normalizer {
 public:
  Replace(Pattern pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}

  Expected<std::string> normalize(std::string text, std::size_t max_bytes, RegexScratch& scratch) const override {
    std::vector<Range> matches;
    RAREFY_RETURN_IF_ERROR(pattern_.find_all(text, scratch, matches));
    if (matches.empty()) return text;
    if (text.size() + matches.size() * content_.size() > max_bytes) {
      return Status::invalid_argument("expected text that the tokenizer's normalizer makes at most " +
                                      std::to_string(max_bytes) + " bytes of, got " + std::to_string(matches.size()) +
                                      " places to replace by " + std::to_string(content_.size()) + " bytes each");
    }
    std::string out;
    out.reserve(text.size() + matches.size() * content_.size());
    std::size_t at = 0;
    for (const Range& match : matches) {
      out.append(text, at, match.begin - at);
      out += content_;
      at = match.end;
    }
    out.append(text, at);
    return out;
  }

 private:
  Pattern pattern_;
  std::string content_;
};

class Prepend final : public Normalizer {
 public:
  explicit Prepend(std::string content) : content_(std::move(content)) {}
  Expected<std::string> normalize(std::string text, std::size_t, RegexScratch&) const override {
    if (!text.empty()) text.insert(0, content_);
    return text;
  }

 private:
  std::string content_;
};

class Strip final : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  Expected<std::string> normalize(std::string text, std::size_t, RegexScratch&) const override {
    std::string_view rest = text;
    while (left_ && !rest.empty()) {
      const Utf8Step step = utf8_step(rest);
      if (!is_white_space(step.code_point)) break;
      rest.remove_prefix(step.num_bytes);
    }
    while (right_ && !rest.empty()) {
      const std::size_t last = last_character(rest);
      if (!is_white_space(utf8_step(rest.substr(last)).code_point)) break;
      rest = rest.substr(0, last);
    }
    return std::string(rest);
  }

 private:
  bool left_, right_;
};

Expected<std::string> bounded_string(const Json& value, std::string_view key, std::string_view place) {
  constexpr std::size_t kMaxBytes = 1024;
  RAREFY_ASSIGN_OR_RETURN(std::string text, require_string(value, key, place));
  if (text.size() > kMaxBytes) {
    return Status::unsupported(std::string(place) + "." + std::string(key) + ": expected at most " +
                               std::to_string(kMaxBytes) + " bytes, got " + std::to_string(text.size()));
  }
  return text;
}

Status append(const Json& value, std::string_view place, Normalizers& out) {
  RAREFY_RETURN_IF_ERROR(expect_object(value, place));
  RAREFY_ASSIGN_OR_RETURN(const std::string kind, require_string(value, "type", place));
  if (kind == "NFC") {
    out.push_back(std::make_unique<Nfc>());
  } else if (kind == "Replace") {
    RAREFY_ASSIGN_OR_RETURN(Pattern pattern, Pattern::parse(value, place));
    RAREFY_ASSIGN_OR_RETURN(std::string content, bounded_string(value, "content", place));
    out.push_back(std::make_unique<Replace>(std::move(pattern), std::move(content)));
  } else if (kind == "Prepend") {
    RAREFY_ASSIGN_OR_RETURN(std::string content, bounded_string(value, "prepend", place));
    out.push_back(std::make_unique<Prepend>(std::move(content)));
  } else if (kind == "Strip") {
    RAREFY_ASSIGN_OR_RETURN(const bool left, optional_bool(value, "strip_left", true, place));
    RAREFY_ASSIGN_OR_RETURN(const bool right, optional_bool(value, "strip_right", true, place));
    out.push_back(std::make_unique<Strip>(left, right));
  } else if (kind == "Sequence") {
    RAREFY_ASSIGN_OR_RETURN(const Json* list, require_array(value, "normalizers", place));
    for (std::size_t i = 0; i < list->size(); ++i) {
      RAREFY_RETURN_IF_ERROR(append((*list)[i], std::string(place) + ".normalizers[" + std::to_string(i) + "]", out));
    }
  } else {
    return unknown_kind(std::string(place) + ".type", kind, {"NFC", "Replace", "Prepend", "Strip", "Sequence"});
  }
  return {};
}

}  // namespace

Expected<Normalizers> parse_normalizers(const Json& value, std::string_view place) {
  // Each may make the text longer; the longest published chain has 5.
  constexpr std::size_t kMaxSteps = 64;
  Normalizers normalizers;
  if (!value.is_null()) RAREFY_RETURN_IF_ERROR(append(value, place, normalizers));
  if (normalizers.size() > kMaxSteps) {
    return Status::unsupported(std::string(place) + ": expected at most " + std::to_string(kMaxSteps) + " steps, got " +
                               std::to_string(normalizers.size()));
  }
  return normalizers;
}

Expected<std::string> normalize(std::span<const std::unique_ptr<Normalizer>> normalizers, std::string text,
                                RegexScratch& scratch) {
  const std::size_t max_bytes = 16 * text.size() + 4096;
  for (const auto& normalizer : normalizers) {
    RAREFY_ASSIGN_OR_RETURN(text, normalizer->normalize(std::move(text), max_bytes, scratch));
  }
  return text;
}

}  // namespace rarefy::model::tokenizer
