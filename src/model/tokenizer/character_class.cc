#include "model/tokenizer/character_class.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>

#include "model/tokenizer/unicode_additions.h"

namespace rarefy::model::tokenizer {
namespace {

constexpr std::size_t kNumAdditions = std::size(kUnicodeAdditions);

constexpr std::array<UnicodeAddition, kNumAdditions> sorted_additions() {
  std::array<UnicodeAddition, kNumAdditions> additions{};
  std::copy(std::begin(kUnicodeAdditions), std::end(kUnicodeAdditions), additions.begin());
  std::sort(additions.begin(), additions.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  return additions;
}
constexpr std::array<UnicodeAddition, kNumAdditions> kAdditions = sorted_additions();

// Of a character that the library of this machine does not know yet.
CharacterClass added_class(uint32_t code_point) {
  const auto* it = std::lower_bound(kAdditions.begin(), kAdditions.end(), code_point,
                                    [](const auto& a, uint32_t c) { return a.last < c; });
  if (it == kAdditions.end() || code_point < it->first) return 0;
  switch (it->category[0]) {
    case 'L': return it->category[1] == 'l' ? kLowerLetter : it->category[1] == 'u' ? kUpperLetter : kOtherLetter;
    case 'M': return kMark;
    case 'N': return kNumber;
    default: return 0;
  }
}

}  // namespace

CharacterClass character_class(uint32_t code_point) {
  if (code_point < kAsciiClasses.size()) return kAsciiClasses[code_point];
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_LL: return kLowerLetter;
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LT: return kUpperLetter;
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return kOtherLetter;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME: return kMark;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return kNumber;
    case UTF8PROC_CATEGORY_CN: return added_class(code_point);
    default: return is_white_space(code_point) ? kSpace : 0;
  }
}

}  // namespace rarefy::model::tokenizer
