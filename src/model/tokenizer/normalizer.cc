#include "model/tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>

#include "model/tokenizer/fields.h"
#include "model/tokenizer/utf8.h"

namespace rarefy::model::tokenizer {
namespace {

using Normalizers = std::vector<std::unique_ptr<Normalizer>>;

// Everything below is a starter that no later character composes with, except with a mark, which is above.
constexpr uint32_t kFirstMark = 0x300;

bool is_nfc_quickly(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text.substr(i));
    if (step.code_point >= kFirstMark) return false;
    i += step.num_bytes;
  }
  return true;
}

// utf8proc sorts marks by exchanging neighbours, quadratic in a run of marks: a megabyte of them would take an hour. So the
// order is made here, and utf8proc decomposes single characters and composes.
void sort_marks(std::vector<utf8proc_int32_t>& code_points) {
  const auto combining_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (std::size_t i = 0; i < code_points.size();) {
    if (combining_class(code_points[i]) == 0) {
      ++i;
      continue;
    }
    std::size_t end = i;
    while (end < code_points.size() && combining_class(code_points[end]) != 0) ++end;
    std::stable_sort(code_points.begin() + static_cast<std::ptrdiff_t>(i),
                     code_points.begin() + static_cast<std::ptrdiff_t>(end),
                     [&](auto a, auto b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
}

class Nfc final : public Normalizer {
 public:
  Expected<std::string> normalize(std::string text) const override {
    if (is_nfc_quickly(text)) return text;
    std::vector<utf8proc_int32_t> code_points;
    code_points.reserve(text.size());
    for (std::size_t i = 0; i < text.size();) {
      const Utf8Step step = utf8_step(std::string_view(text).substr(i));
      i += step.num_bytes;
      utf8proc_int32_t parts[8];  // a canonical decomposition has at most 4
      int boundary_class = 0;
      const auto count =
          utf8proc_decompose_char(static_cast<utf8proc_int32_t>(step.code_point), parts, 8,
                                  static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE), &boundary_class);
      if (count < 0 || count > 8)
        return Status::internal("NFC: a decomposition of " + std::to_string(count) + " characters");
      code_points.insert(code_points.end(), parts, parts + count);
    }
    sort_marks(code_points);
    const auto count = utf8proc_normalize_utf32(code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()),
                                                static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    if (count < 0) return Status::internal(std::string("NFC: ") + utf8proc_errmsg(count));
    text.clear();
    for (utf8proc_ssize_t i = 0; i < count; ++i)
      append_utf8(static_cast<uint32_t>(code_points[static_cast<std::size_t>(i)]), text);
    return text;
  }
};

Status append(const Json& value, std::string_view place, Normalizers& out) {
  RAREFY_RETURN_IF_ERROR(expect_object(value, place));
  RAREFY_ASSIGN_OR_RETURN(const std::string kind, require_string(value, "type", place));
  if (kind == "NFC") {
    out.push_back(std::make_unique<Nfc>());
    return {};
  }
  if (kind == "Sequence") {
    RAREFY_ASSIGN_OR_RETURN(const Json* list, require_array(value, "normalizers", place));
    for (std::size_t i = 0; i < list->size(); ++i) {
      RAREFY_RETURN_IF_ERROR(append((*list)[i], std::string(place) + ".normalizers[" + std::to_string(i) + "]", out));
    }
    return {};
  }
  return unknown_kind(std::string(place) + ".type", kind, {"NFC", "Sequence"});
}

}  // namespace

Expected<Normalizers> parse_normalizers(const Json& value, std::string_view place) {
  Normalizers normalizers;
  if (!value.is_null()) RAREFY_RETURN_IF_ERROR(append(value, place, normalizers));
  return normalizers;
}

}  // namespace rarefy::model::tokenizer
