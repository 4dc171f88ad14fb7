// Bpe: byte-pair encoding. A piece starts as characters; the neighbours with the lowest-ranked merge are joined, the leftmost
// first, until none can be. Takes O(n log n) for a piece of n characters. Immutable and shareable between threads.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <unordered_map>

#include "model/tokenizer/token_model.h"

namespace rarefy::model::tokenizer {

class Bpe final : public TokenModel {
 public:
  static Expected<std::unique_ptr<TokenModel>> parse(const Json& value, std::string_view place);

  const Vocabulary& vocabulary() const override { return vocabulary_; }
  Status tokenize(std::string_view piece, WordCache& cache, std::vector<int32_t>& ids) const override;

 private:
  struct Merge {
    uint32_t rank;
    int32_t id;
  };
  struct PairHash {
    std::size_t operator()(uint64_t pair) const {
      pair *= 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio: spreads both ids over the high bits
      return static_cast<std::size_t>(pair ^ pair >> 32);
    }
  };
  struct Symbol;
  struct Candidate;

  static uint64_t pair_key(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  Status read_vocabulary(const Json& model, std::string_view place);
  Status read_merges(const Json& model, std::string_view place);
  Status read_options(const Json& model, std::string_view place);
  void index_characters();
  int32_t character_id(std::string_view character, uint32_t code_point) const;
  Expected<std::vector<Symbol>> characters(std::string_view piece) const;
  void merge_all(std::vector<Symbol>& symbols) const;

  Vocabulary vocabulary_;
  std::unordered_map<uint64_t, Merge, PairHash> merges_;
  std::array<int32_t, 512> low_character_ids_{};  // [code point] i32; the byte-level alphabet is among the first 324
  int32_t unk_id_ = -1;
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;
};

}  // namespace rarefy::model::tokenizer
