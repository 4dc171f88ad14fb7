// Normalizer: rewrites text before it is cut into pieces. Immutable and shareable between threads.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/json_file.h"
#include "rarefy/core/status.h"

namespace rarefy::model::tokenizer {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // Pre: text is UTF-8; the result is too.
  virtual Expected<std::string> normalize(std::string text) const = 0;
};

// The normalizers of a file in their order; none for null. Kinds: NFC, Sequence.
Expected<std::vector<std::unique_ptr<Normalizer>>> parse_normalizers(const Json& value, std::string_view place);

}  // namespace rarefy::model::tokenizer
