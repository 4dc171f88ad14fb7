// TokenModel: turns one piece of text into ids. Immutable and shareable between threads; a word cache belongs to one call.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "model/json_file.h"
#include "model/tokenizer/vocabulary.h"
#include "rarefy/core/status.h"

namespace rarefy::model::tokenizer {

// Ids of the pieces that came before in the same text: words repeat.
class WordCache {
 public:
  // Null when the piece is not there.
  const std::vector<int32_t>* find(std::string_view piece) const {
    const auto it = words_.find(piece);
    return it == words_.end() ? nullptr : &it->second;
  }
  void add(std::string_view piece, std::vector<int32_t> ids) {
    if (words_.size() < kMaxWords && piece.size() <= kMaxPieceBytes) words_.emplace(piece, std::move(ids));
  }

 private:
  static constexpr std::size_t kMaxWords = 1 << 15, kMaxPieceBytes = 64;  // bounds it at a few MB
  StringMap<std::vector<int32_t>> words_;
};

class TokenModel {
 public:
  virtual ~TokenModel() = default;
  virtual const Vocabulary& vocabulary() const = 0;
  // Appends the ids of a piece. Pre: piece is UTF-8 and not empty.
  virtual Status tokenize(std::string_view piece, WordCache& cache, std::vector<int32_t>& ids) const = 0;
};

// The only kind so far is BPE.
Expected<std::unique_ptr<TokenModel>> parse_token_model(const Json& value, std::string_view place);

}  // namespace rarefy::model::tokenizer
