#include "model/tokenizer/bpe.h"

#include <algorithm>
#include <string>

#include "model/tokenizer/utf8.h"

namespace rarefy::model::tokenizer {

Status Bpe::tokenize(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    if (const int32_t id = vocabulary_.id(piece); id >= 0) {
      ids.push_back(id);
      return {};
    }
  }
  RAREFY_RETURN_IF_ERROR(split_into_characters(piece, scratch));
  merge_all(scratch);
  for (const Symbol& symbol : scratch.symbols_) {
    if (symbol.id >= 0) ids.push_back(symbol.id);
  }
  return {};
}

std::size_t Bpe::independent_prefix(std::string_view piece) const {
  if (ignore_merges_) return piece.size();  // the whole piece may be a token
  Utf8Step step = utf8_step(piece);
  std::size_t end = step.num_bytes;
  while (end < piece.size()) {
    const uint32_t left = step.code_point;
    step = utf8_step(piece.substr(end));
    // Characters without a token become one of unknown text, perhaps together, or bytes: nothing is known about these.
    if (!joined_.has(left, step.code_point) && character_id(left) >= 0 && character_id(step.code_point) >= 0) return end;
    end += step.num_bytes;
  }
  return end;
}

bool Bpe::append_byte_symbols(std::string_view character, Scratch& scratch) const {
  const auto byte_id = [this](char byte) { return byte_ids_[static_cast<uint8_t>(byte)]; };
  if (!std::all_of(character.begin(), character.end(), [&](char byte) { return byte_id(byte) >= 0; })) return false;
  for (const char byte : character) scratch.append(byte_id(byte));
  return true;
}

Status Bpe::split_into_characters(std::string_view piece, Scratch& scratch) const {
  scratch.symbols_.clear();
  // As in `tokenizers`, unknown text comes after the bytes that follow it, and fuses across them.
  bool unknown_waits = false;
  const auto put_unknown = [&] {
    if (unknown_waits) scratch.append(unk_id_);
    unknown_waits = false;
  };
  for (std::size_t i = 0; i < piece.size();) {
    const Utf8Step step = utf8_step(piece.substr(i));
    const std::string_view character = piece.substr(i, step.num_bytes);
    i += step.num_bytes;
    if (const int32_t id = character_id(step.code_point); id >= 0) {
      put_unknown();
      scratch.append(id);
      continue;
    }
    if (byte_fallback_ && append_byte_symbols(character, scratch)) continue;
    if (unk_id_ < 0) {
      return Status::not_found("expected text of characters the tokenizer knows, got '" + std::string(character) +
                               "', which has no token, and the tokenizer has no token for unknown text");
    }
    if (!fuse_unk_) put_unknown();
    unknown_waits = true;
  }
  put_unknown();
  if (!scratch.symbols_.empty()) scratch.symbols_.back().next = -1;
  return {};
}

void Bpe::merge_all(Scratch& scratch) const {
  std::vector<Symbol>& symbols = scratch.symbols_;
  std::vector<Candidate>& queue = scratch.queue_;
  const auto find = [&](int32_t position) -> const Merge* {
    return merges_.find(pair_key(symbols[position].id, symbols[symbols[position].next].id));
  };
  queue.clear();
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) {
    if (const Merge* merge = find(i)) queue.push_back({merge->rank, i, merge->id});
  }
  std::make_heap(queue.begin(), queue.end());
  const auto offer = [&](int32_t position) {
    if (const Merge* merge = find(position)) {
      queue.push_back({merge->rank, position, merge->id});
      std::push_heap(queue.begin(), queue.end());
    }
  };
  while (!queue.empty()) {
    const Candidate top = queue.front();
    std::pop_heap(queue.begin(), queue.end());
    queue.pop_back();
    Symbol& left = symbols[top.position];
    if (left.id < 0 || left.next < 0) continue;
    // Either side may have become something else since this was offered.
    const Merge* merge = find(top.position);
    if (merge == nullptr || merge->id != top.id) continue;
    Symbol& right = symbols[left.next];
    left.id = top.id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = top.position;
    if (left.previous >= 0) offer(left.previous);
    if (left.next >= 0) offer(top.position);
  }
}

}  // namespace rarefy::model::tokenizer
