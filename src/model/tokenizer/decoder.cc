#include "model/tokenizer/decoder.h"

#include <optional>
#include <utility>

#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/fields.h"
#include "model/tokenizer/utf8.h"

namespace rarefy::model::tokenizer {
namespace {

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The byte of a token such as <0x0A>. As in `tokenizers`, <0x+A> is one too.
std::optional<char> byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const int high = token[3] == '+' ? 0 : hex_digit(token[3]), low = hex_digit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high * 16 + low);
}

void replace_all(std::string_view text, std::string_view from, std::string_view to, std::string& out) {
  std::size_t at = 0;
  for (std::size_t match; (match = text.find(from, at)) != std::string_view::npos; at = match + from.size()) {
    out += text.substr(at, match - at);
    out += to;
  }
  out += text.substr(at);
}

}  // namespace

class Decoder::Parser {
 public:
  Status append(const Json& value, std::string_view place) {
    RAREFY_RETURN_IF_ERROR(expect_object(value, place));
    RAREFY_ASSIGN_OR_RETURN(const std::string kind, require_string(value, "type", place));
    if (kind == "Sequence") {
      RAREFY_ASSIGN_OR_RETURN(const Json* list, require_array(value, "decoders", place));
      for (std::size_t i = 0; i < list->size(); ++i) {
        RAREFY_RETURN_IF_ERROR(append((*list)[i], std::string(place) + ".decoders[" + std::to_string(i) + "]"));
      }
      return {};
    }
    if (kind == "Fuse") {
      fused_ = true;
      return {};
    }
    const bool is_known = kind == "ByteLevel" || kind == "ByteFallback" || kind == "Replace";
    if (!is_known) {
      return unknown_kind(std::string(place) + ".type", kind, {"ByteLevel", "ByteFallback", "Replace", "Fuse", "Sequence"});
    }
    // A step after one that fuses sees the whole text instead of tokens, and a stream has no whole text.
    if (fused_) return unsupported_order(place, kind);
    if (kind == "ByteLevel") {
      decoder_.byte_level_ = fused_ = true;
      return {};
    }
    if (decoder_.steps_.size() >= kMaxSteps) {
      return Status::unsupported(std::string(place) + ": expected at most " + std::to_string(kMaxSteps) + " steps");
    }
    if (kind == "Replace") return append_replace(value, place);
    if (has_byte_fallback_) return unsupported_order(place, kind);
    has_byte_fallback_ = true;
    decoder_.byte_fallback_step_ = decoder_.steps_.size();
    decoder_.steps_.push_back({true, {}, {}});
    return {};
  }

  Decoder finish() {
    if (!has_byte_fallback_) decoder_.byte_fallback_step_ = decoder_.steps_.size();
    return std::move(decoder_);
  }

 private:
  static constexpr std::size_t kMaxSteps = 16, kMaxContentBytes = 64;

  static Status unsupported_order(std::string_view place, std::string_view kind) {
    return Status::unsupported(std::string(place) + ": expected ByteLevel and ByteFallback once and Fuse last, got " +
                               std::string(kind) + " after Fuse, or again; this order is not supported");
  }

  Status append_replace(const Json& value, std::string_view place) {
    RAREFY_ASSIGN_OR_RETURN(const Json* pattern, require_object(value, "pattern", place));
    const std::string pattern_place = std::string(place) + ".pattern";
    if (find_member(*pattern, "Regex") != nullptr) {
      return unknown_kind(pattern_place, "Regex", {"String"});
    }
    RAREFY_ASSIGN_OR_RETURN(std::string from, require_string(*pattern, "String", pattern_place));
    if (from.empty()) return unexpected(pattern_place + ".String", "a text that is not empty", (*pattern)["String"]);
    RAREFY_ASSIGN_OR_RETURN(std::string to, require_string(value, "content", place));
    if (to.size() > kMaxContentBytes) {
      return Status::unsupported(std::string(place) + ".content: expected at most " + std::to_string(kMaxContentBytes) +
                                 " bytes, got " + std::to_string(to.size()));
    }
    decoder_.steps_.push_back({false, std::move(from), std::move(to)});
    return {};
  }

  Decoder decoder_;
  bool fused_ = false, has_byte_fallback_ = false;
};

Expected<Decoder> Decoder::parse(const Json& value, std::string_view place) {
  Parser parser;
  if (!value.is_null()) RAREFY_RETURN_IF_ERROR(parser.append(value, place));
  Decoder decoder = parser.finish();
  if (value.is_null()) decoder.separator_ = " ";
  return decoder;
}

void Decoder::push(std::string_view token, std::string& byte_run, std::string& bytes) const {
  push_from(0, token, byte_run, bytes);
}

void Decoder::push_from(std::size_t step, std::string_view token, std::string& byte_run, std::string& bytes) const {
  std::string now, next;
  for (; step < steps_.size(); ++step) {
    if (steps_[step].is_byte_fallback) {
      if (const auto byte = byte_of_token(token)) {
        byte_run += *byte;
        return;
      }
      end_run(byte_run, bytes);
    } else if (token.find(steps_[step].from) != std::string_view::npos) {
      next.clear();
      replace_all(token, steps_[step].from, steps_[step].to, next);
      now.swap(next);
      token = now;
    }
  }
  if (byte_level_) {
    append_bytes_of_token(token, bytes);
  } else {
    bytes += token;
  }
}

void Decoder::end_run(std::string& byte_run, std::string& bytes) const {
  if (byte_run.empty()) return;
  // Steps after this one see the run as one token, or each wrong byte as one.
  const std::string run = std::exchange(byte_run, {});
  if (!first_malformed_byte(run)) {
    push_from(byte_fallback_step_ + 1, run, byte_run, bytes);
  } else {
    for (std::size_t i = 0; i < run.size(); ++i) push_from(byte_fallback_step_ + 1, kReplacement, byte_run, bytes);
  }
}

}  // namespace rarefy::model::tokenizer
