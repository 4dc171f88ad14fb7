#include "model/tokenizer/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "model/tokenizer/utf8.h"

namespace rarefy::model::tokenizer {
namespace {

// The lead bytes of characters from U+0300 on.
constexpr uint8_t kFirstLead = 0xcc;

// The normalization of `tokenizers` has the data of Unicode 9. To it, characters that came later are starters that neither
// decompose nor compose. Listed is where that makes a difference: marks that have a combining class since, and the parts of
// compositions, up to Unicode 16. U+11A7 is old, but utf8proc drops it after a Hangul syllable, and to leave it alone is right.
struct CodePoints {
  uint32_t first, last;  // inclusive
};
constexpr CodePoints kLeftAlone[] = {
    // clang-format off
    {0x7fd, 0x7fd}, {0x897, 0x89f}, {0x8ca, 0x8d3}, {0x9fe, 0x9fe}, {0xc3c, 0xc3c}, {0xd3b, 0xd3c}, {0xeba, 0xeba},
    {0x11a7, 0x11a7}, {0x1715, 0x1715}, {0x1abf, 0x1aeb}, {0x1df6, 0x1dfa}, {0xa82c, 0xa82c}, {0x105c0, 0x105f3}, {0x10d24, 0x10d27},
    {0x10d69, 0x10d6d}, {0x10eab, 0x10eac}, {0x10efa, 0x10eff}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070},
    {0x1133b, 0x1133b}, {0x11380, 0x113e2}, {0x1145e, 0x1145e}, {0x11839, 0x1183a}, {0x11930, 0x11943}, {0x119e0, 0x119e0},
    {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42},
    {0x16100, 0x16139}, {0x16d40, 0x16d79}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae},
    {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef}, {0x1e5ee, 0x1e5ef},
    // clang-format on
};

bool is_left_alone(uint32_t c) {
  const auto* it = std::lower_bound(std::begin(kLeftAlone), std::end(kLeftAlone), c,
                                    [](const CodePoints& range, uint32_t code_point) { return range.last < code_point; });
  return it != std::end(kLeftAlone) && it->first <= c;
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

Status append_normalized(std::string_view text, std::vector<utf8proc_int32_t>& code_points, std::string& out) {
  code_points.clear();
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text.substr(i));
    i += step.num_bytes;
    utf8proc_int32_t parts[8];  // a canonical decomposition has at most 4
    int boundary_class = 0;
    const auto count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(step.code_point), parts, 8,
                                static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE), &boundary_class);
    if (count < 0 || count > 8) return Status::internal("NFC: a decomposition of " + std::to_string(count) + " characters");
    code_points.insert(code_points.end(), parts, parts + count);
  }
  sort_marks(code_points);
  const auto count = utf8proc_normalize_utf32(code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()),
                                              static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  if (count < 0) return Status::internal(std::string("NFC: ") + utf8proc_errmsg(count));
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    append_utf8(static_cast<uint32_t>(code_points[static_cast<std::size_t>(i)]), out);
  }
  return {};
}

}  // namespace

Expected<std::string> to_nfc(std::string text) {
  const auto is_high = [](char c) { return static_cast<uint8_t>(c) >= kFirstLead; };
  if (std::none_of(text.begin(), text.end(), is_high)) return text;
  // Text may be cut before a character that starts normalized, and on both sides of one that is left alone. Only parts with
  // another character need work.
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> code_points;
  const std::string_view all = text;
  std::size_t copied = 0, part = 0, at = 0;  // what is in `out`; where the part that may need work starts
  bool needs_work = false;
  const auto finish_part = [&]() -> Status {
    if (!needs_work) return {};
    out += all.substr(copied, part - copied);
    copied = at;
    needs_work = false;
    return append_normalized(all.substr(part, at - part), code_points, out);
  };
  while (at < all.size()) {
    const Utf8Step step = utf8_step(all.substr(at));
    const bool starts = starts_normalized(step.code_point);
    if (const bool leave_alone = !starts && is_left_alone(step.code_point); starts || leave_alone) {
      RAREFY_RETURN_IF_ERROR(finish_part());
      part = leave_alone ? at + step.num_bytes : at;
    } else {
      needs_work = true;
    }
    at += step.num_bytes;
  }
  RAREFY_RETURN_IF_ERROR(finish_part());
  out += all.substr(copied);
  return out;
}

}  // namespace rarefy::model::tokenizer
