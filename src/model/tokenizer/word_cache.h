// WordCache: the ids of the pieces that came before in the same text, because words repeat. Bounded at a few MB: when it is
// full it starts anew. Belongs to one call.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rarefy::model::tokenizer {

class WordCache {
 public:
  static constexpr std::size_t kMaxPieceBytes = 64, kMaxWords = std::size_t{1} << 15;

  // Pre: piece has 1 to kMaxPieceBytes bytes. The result lives until the next `add`.
  std::optional<std::span<const int32_t>> find(std::string_view piece) const {
    if (words_.empty()) return std::nullopt;
    const Word& word = words_[slot_of(piece, hash(piece))];
    if (word.num_bytes == 0) return std::nullopt;
    return std::span(ids_).subspan(word.ids_begin, word.num_ids);
  }

  // Pre: as above, and the piece is not there.
  void add(std::string_view piece, std::span<const int32_t> ids) {
    if (2 * (num_words_ + 1) > words_.size()) make_room();
    const uint64_t h = hash(piece);
    words_[slot_of(piece, h)] = {h, static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(ids_.size()),
                                 static_cast<uint16_t>(piece.size()), static_cast<uint16_t>(ids.size())};
    bytes_ += piece;
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    ++num_words_;
  }

 private:
  struct Word {
    uint64_t hash = 0;
    uint32_t bytes_begin = 0, ids_begin = 0;
    uint16_t num_bytes = 0, num_ids = 0;  // no bytes: a free slot
  };

  static uint64_t load(const char* from, std::size_t num_bytes) {
    uint64_t value = 0;
    std::memcpy(&value, from, num_bytes);
    return value;
  }
  static uint64_t hash(std::string_view piece) {
    const auto mix = [](uint64_t h, uint64_t value) {
      h = (h ^ value) * 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio
      return h ^ h >> 32;
    };
    const char* at = piece.data();
    std::size_t left = piece.size();
    uint64_t h = left;
    for (; left > 8; at += 8, left -= 8) h = mix(h, load(at, 8));
    // The last 1 to 8 bytes, in loads of fixed size that may overlap.
    if (left >= 4) return mix(h, load(at, 4) | load(at + left - 4, 4) << 32);
    return mix(h, load(at, 1) | load(at + left / 2, 1) << 8 | load(at + left - 1, 1) << 16);
  }
  std::size_t slot_of(std::string_view piece, uint64_t h) const {
    std::size_t i = h & (words_.size() - 1);
    while (words_[i].num_bytes != 0 &&
           !(words_[i].hash == h && words_[i].num_bytes == piece.size() &&
             std::memcmp(bytes_.data() + words_[i].bytes_begin, piece.data(), piece.size()) == 0)) {
      i = (i + 1) & (words_.size() - 1);
    }
    return i;
  }
  void make_room() {
    if (num_words_ >= kMaxWords) {
      words_.assign(words_.size(), Word{});
      bytes_.clear();
      ids_.clear();
      num_words_ = 0;
      return;
    }
    std::vector<Word> old(words_.empty() ? 256 : 2 * words_.size());
    old.swap(words_);
    for (const Word& word : old) {
      if (word.num_bytes == 0) continue;
      std::size_t i = word.hash & (words_.size() - 1);
      while (words_[i].num_bytes != 0) i = (i + 1) & (words_.size() - 1);
      words_[i] = word;
    }
  }

  std::vector<Word> words_;  // a power of two of them, at least half of them free
  std::string bytes_;
  std::vector<int32_t> ids_;  // not a tensor: the ids of all words, one after the other
  std::size_t num_words_ = 0;
};

}  // namespace rarefy::model::tokenizer
