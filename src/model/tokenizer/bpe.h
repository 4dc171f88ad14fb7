// Bpe: byte-pair encoding. A piece starts as characters; the neighbours with the lowest-ranked merge are joined, the leftmost
// first, until none can be. Takes O(n log n) for a piece of n characters. Immutable and shareable between threads; a scratch
// belongs to one thread at a time.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "model/json_file.h"
#include "model/tokenizer/character_pairs.h"
#include "model/tokenizer/flat_map.h"
#include "model/tokenizer/vocabulary.h"
#include "rarefy/core/status.h"

namespace rarefy::model::tokenizer {

class Bpe {
 public:
  class Scratch;

  // The member "model" of tokenizer.json.
  static Expected<Bpe> parse(const Json& value, std::string_view place);

  const Vocabulary& vocabulary() const { return vocabulary_; }

  // Appends the ids of a piece. Pre: piece is UTF-8 and not empty.
  Status tokenize(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;

  // Bytes at the start of a piece whose ids do not depend on the rest, nor the rest on them. Pre: as above.
  std::size_t independent_prefix(std::string_view piece) const;

 private:
  struct Merge {
    uint32_t rank;
    int32_t id;
  };
  // A link of the list of what the piece consists of now. `id` is -1 once it was joined to its left neighbour.
  struct Symbol {
    int32_t id, previous, next;  // positions; -1 = none
  };
  struct Candidate {
    uint32_t rank;
    int32_t position, id;  // of the left one; of what both become
    // For a heap whose top is the smallest rank, and of these the leftmost.
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };

  static uint64_t pair_key(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  Status read_vocabulary(const Json& model, std::string_view place);
  Status read_merges(const Json& model, std::string_view place);
  Status read_options(const Json& model, std::string_view place);
  void index_characters();
  // -1 when the character has no token.
  int32_t character_id(uint32_t code_point) const {
    if (code_point < low_character_ids_.size()) return low_character_ids_[code_point];
    const int32_t* id = character_ids_.find(code_point);
    return id == nullptr ? -1 : *id;
  }
  bool append_byte_symbols(std::string_view character, Scratch& scratch) const;
  Status split_into_characters(std::string_view piece, Scratch& scratch) const;
  void merge_all(Scratch& scratch) const;

  Vocabulary vocabulary_;
  FlatMap<Merge> merges_;
  CharacterPairs joined_;
  std::array<int32_t, 512> low_character_ids_{};  // [code point] i32; the byte-level alphabet is among the first 324
  FlatMap<int32_t> character_ids_;                // the others
  std::array<int32_t, 256> byte_ids_{};           // [byte] i32; of <0x00> to <0xFF>; -1 = none
  int32_t unk_id_ = -1;
  bool fuse_unk_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
};

class Bpe::Scratch {
  friend class Bpe;
  void append(int32_t id) {
    const auto position = static_cast<int32_t>(symbols_.size());
    symbols_.push_back({id, position - 1, position + 1});
  }
  std::vector<Symbol> symbols_;
  std::vector<Candidate> queue_;
};

}  // namespace rarefy::model::tokenizer
