// Vocabulary: token strings and their ids, both ways. Immutable after the file is read; shareable between threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace rarefy::model::tokenizer {

// Lookup by string_view without making a string.
struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
template <typename T>
using StringMap = std::unordered_map<std::string, T, StringHash, std::equal_to<>>;

class Vocabulary {
 public:
  // False when the token or the id is there already.
  bool add(const std::string& token, int32_t id) { return add(token, id, token); }
  // The same with another string to return for the id.
  bool add(std::string token, int32_t id, std::string text_of_id) {
    if (ids_.contains(token) || tokens_.contains(id)) return false;
    tokens_.emplace(id, std::move(text_of_id));
    ids_.emplace(std::move(token), id);
    if (id >= size_) size_ = id + 1;
    return true;
  }
  // -1 when there is none.
  int32_t id(std::string_view token) const {
    const auto it = ids_.find(token);
    return it == ids_.end() ? -1 : it->second;
  }
  // Null when there is none.
  const std::string* token(int32_t id) const {
    const auto it = tokens_.find(id);
    return it == tokens_.end() ? nullptr : &it->second;
  }
  // Calls `visit(token, id)` for every token, in no order.
  template <typename Visit>
  void for_each(Visit visit) const {
    for (const auto& [token, id] : ids_) visit(std::string_view(token), id);
  }
  int32_t size() const { return size_; }  // largest id + 1

 private:
  StringMap<int32_t> ids_;
  std::unordered_map<int32_t, std::string> tokens_;  // ids may have gaps
  int32_t size_ = 0;
};

}  // namespace rarefy::model::tokenizer
