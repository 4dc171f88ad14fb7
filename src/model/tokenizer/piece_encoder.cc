#include "model/tokenizer/piece_encoder.h"

#include <span>

#include "model/tokenizer/byte_level.h"

namespace rarefy::model::tokenizer {

Status PieceEncoder::accept(std::string_view piece) {
  if (byte_level_) return encode(piece);
  // A piece may be a whole document here.
  while (!piece.empty()) {
    const std::size_t num_bytes = bpe_.independent_prefix(piece);
    RAREFY_RETURN_IF_ERROR(encode(piece.substr(0, num_bytes)));
    piece.remove_prefix(num_bytes);
  }
  return {};
}

Status PieceEncoder::encode(std::string_view word) {
  const bool is_short = word.size() <= WordCache::kMaxPieceBytes;
  if (is_short) {
    if (const auto known = cache_.find(word)) {
      ids_.insert(ids_.end(), known->begin(), known->end());
      return {};
    }
  }
  const std::size_t begin = ids_.size();
  if (byte_level_) {
    byte_characters_.clear();
    append_byte_characters(word, byte_characters_);
    RAREFY_RETURN_IF_ERROR(bpe_.tokenize(byte_characters_, scratch_, ids_));
  } else {
    RAREFY_RETURN_IF_ERROR(bpe_.tokenize(word, scratch_, ids_));
  }
  if (is_short) cache_.add(word, std::span<const int32_t>(ids_).subspan(begin));
  return {};
}

}  // namespace rarefy::model::tokenizer
