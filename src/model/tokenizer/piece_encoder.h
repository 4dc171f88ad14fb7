// PieceEncoder: the last step of encoding: pieces to ids, through a cache of the pieces that came before. Belongs to one call.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer/bpe.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/word_cache.h"

namespace rarefy::model::tokenizer {

class PieceEncoder final : public PieceSink {
 public:
  // With `byte_level`, the model sees each byte of a piece as a character. Both references outlive this object.
  PieceEncoder(const Bpe& bpe, bool byte_level, std::vector<int32_t>& ids)
      : bpe_(bpe), byte_level_(byte_level), ids_(ids) {}

  Status accept(std::string_view piece) override;

 private:
  Status encode(std::string_view word);

  const Bpe& bpe_;
  bool byte_level_;
  std::vector<int32_t>& ids_;  // [num_tokens] i32; grows
  WordCache cache_;
  Bpe::Scratch scratch_;
  std::string byte_characters_;
};

}  // namespace rarefy::model::tokenizer
