#include "model/tokenizer/bpe.h"

#include <algorithm>
#include <queue>
#include <utility>

#include "model/tokenizer/utf8.h"

namespace rarefy::model::tokenizer {

// A link of the list of what the piece consists of now. `id` is -1 once it was joined to its left neighbour.
struct Bpe::Symbol {
  int32_t id, previous, next;  // positions; -1 = none
};

struct Bpe::Candidate {
  uint32_t rank;
  int32_t position, id;  // of the left one; of what both become
  // For a heap whose top is the smallest rank, and of these the leftmost.
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

Status Bpe::tokenize(std::string_view piece, WordCache& cache, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    if (const int32_t id = vocabulary_.id(piece); id >= 0) {
      ids.push_back(id);
      return {};
    }
  }
  if (const auto* known = cache.find(piece)) {
    ids.insert(ids.end(), known->begin(), known->end());
    return {};
  }
  RAREFY_ASSIGN_OR_RETURN(std::vector<Symbol> symbols, characters(piece));
  merge_all(symbols);
  std::vector<int32_t> found;
  for (const Symbol& symbol : symbols) {
    if (symbol.id >= 0) found.push_back(symbol.id);
  }
  ids.insert(ids.end(), found.begin(), found.end());
  cache.add(piece, std::move(found));
  return {};
}

int32_t Bpe::character_id(std::string_view character, uint32_t code_point) const {
  return code_point < low_character_ids_.size() ? low_character_ids_[code_point] : vocabulary_.id(character);
}

Expected<std::vector<Bpe::Symbol>> Bpe::characters(std::string_view piece) const {
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  bool last_was_unknown = false;
  for (std::size_t i = 0; i < piece.size();) {
    const Utf8Step step = utf8_step(piece.substr(i));
    const std::string_view character = piece.substr(i, step.num_bytes);
    int32_t id = character_id(character, step.code_point);
    const bool unknown = id < 0;
    if (unknown) {
      if (unk_id_ < 0) {
        return Status::not_found("expected text of characters the tokenizer knows, got '" + std::string(character) +
                                 "', which has no token, and the tokenizer has no token for unknown text");
      }
      id = unk_id_;
    }
    if (!(unknown && last_was_unknown && fuse_unk_)) {
      const auto position = static_cast<int32_t>(symbols.size());
      symbols.push_back({id, position - 1, position + 1});
    }
    last_was_unknown = unknown;
    i += step.num_bytes;
  }
  if (!symbols.empty()) symbols.back().next = -1;
  return symbols;
}

void Bpe::merge_all(std::vector<Symbol>& symbols) const {
  const auto find = [this](int32_t left, int32_t right) -> const Merge* {
    const auto it = merges_.find(pair_key(left, right));
    return it == merges_.end() ? nullptr : &it->second;
  };
  std::vector<Candidate> first;
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) {
    const Merge* merge = find(symbols[i].id, symbols[i + 1].id);
    if (merge != nullptr) first.push_back({merge->rank, i, merge->id});
  }
  std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(first));
  const auto offer = [&](int32_t position) {
    const Symbol& left = symbols[position];
    const Merge* merge = find(left.id, symbols[left.next].id);
    if (merge != nullptr) queue.push({merge->rank, position, merge->id});
  };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[top.position];
    if (left.id < 0 || left.next < 0) continue;
    // Either side may have become something else since this was offered.
    Symbol& right = symbols[left.next];
    const Merge* merge = find(left.id, right.id);
    if (merge == nullptr || merge->id != top.id) continue;
    left.id = top.id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = top.position;
    if (left.previous >= 0) offer(left.previous);
    if (left.next >= 0) offer(top.position);
  }
}

}  // namespace rarefy::model::tokenizer
