// AddedTokens: tokens that are found in the text before anything else cuts it. Immutable after the file is read; shareable
// between threads.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "model/json_file.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/vocabulary.h"
#include "rarefy/core/status.h"

namespace rarefy::model::tokenizer {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      // skipped by decode(skip_special_tokens); plain text when parse_special is off
  bool normalized = false;   // looked for in normalised text
  bool single_word = false;  // only where no word goes on at either side
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and after it
};

// Finds the longest of a set of strings that starts at a place, byte by byte along a tree.
class PrefixTree {
 public:
  static constexpr std::size_t kMaxStringBytes = 1024;  // bounds a search at this many steps per byte of text

  void add(std::string_view text, int32_t value);
  bool empty() const { return nodes_.size() == 1; }
  bool may_start_with(char c) const { return starts_[static_cast<uint8_t>(c)]; }
  struct Match {
    int32_t value = -1;  // -1 = none
    std::size_t num_bytes = 0;
  };
  Match longest(std::string_view text) const;

 private:
  struct Node {
    std::unordered_map<char, int32_t> children;
    int32_t value = -1;
  };
  std::vector<Node> nodes_{1};
  bool starts_[256] = {};
};

// A part of the text: an added token, or text between them.
struct Segment {
  int32_t id;  // -1: text
  std::string_view text;
};

class AddedTokens {
 public:
  enum class Stage { raw, normalized };

  // `normalizers` rewrite the contents that are looked for in normalised text. Null: no added tokens.
  static Expected<AddedTokens> parse(const Json* value, std::string_view place, const Vocabulary& model_vocabulary,
                                     std::span<const std::unique_ptr<Normalizer>> normalizers);

  // Cuts `text` at the tokens of a stage: leftmost first, of these the longest.
  Expected<std::vector<Segment>> split(std::string_view text, Stage stage, bool parse_special, RegexScratch& scratch) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  bool is_special(std::string_view content) const { return special_.contains(content); }

 private:
  AddedTokens() = default;
  static Expected<AddedToken> parse_one(const Json& value, std::string_view place);

  std::vector<AddedToken> tokens_;
  Vocabulary vocabulary_;
  std::unordered_set<std::string, StringHash, std::equal_to<>> special_;
  PrefixTree raw_, normalized_;                  // to indices into tokens_
  std::vector<Regex> word_before_, word_after_;  // one each; made when the file has a single_word token
};

}  // namespace rarefy::model::tokenizer
