// Normalizer: rewrites text before it is cut into pieces. Immutable and shareable between threads; the scratch belongs to one
// thread at a time.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/json_file.h"
#include "model/tokenizer/regex.h"
#include "rarefy/core/status.h"

namespace rarefy::model::tokenizer {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // Refuses to make more than `max_bytes`. Pre: text is UTF-8; the result is too.
  virtual Expected<std::string> normalize(std::string text, std::size_t max_bytes, RegexScratch& scratch) const = 0;
};

// The normalizers of a file in their order; none for null. Kinds: NFC, Replace, Prepend, Strip, Sequence.
Expected<std::vector<std::unique_ptr<Normalizer>>> parse_normalizers(const Json& value, std::string_view place);

// One after the other. Refuses what becomes more than 16 times as long, and 4 KiB.
Expected<std::string> normalize(std::span<const std::unique_ptr<Normalizer>> normalizers, std::string text,
                                RegexScratch& scratch);

}  // namespace rarefy::model::tokenizer
