// Unicode normalization form C with the data of Unicode 9, as `tokenizers` does it; in time linear in the text but for sorting
// marks. Free functions without state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "rarefy/core/status.h"

namespace rarefy::model::tokenizer {

// Pre: text is UTF-8; the result is too.
Expected<std::string> to_nfc(std::string text);

// Characters that are in form C, start anew (no character before composes with them) and are common in texts that need no
// normalization. Some that are so may be missing.
constexpr bool starts_normalized(uint32_t c) {
  return c < 0x300 || (c >= 0x2010 && c <= 0x205e) || (c >= 0x3001 && c <= 0x3029) || (c >= 0x4e00 && c <= 0x9fff) ||
         (c >= 0xff01 && c <= 0xff5e);
}

}  // namespace rarefy::model::tokenizer
