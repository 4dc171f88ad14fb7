// PreTokenizer: cuts text into the pieces that the model tokenizes one by one. Steps form a chain: each hands its pieces to the
// next. Immutable and shareable between threads; the scratch belongs to one thread at a time.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "model/json_file.h"
#include "model/tokenizer/regex.h"
#include "rarefy/core/status.h"

namespace rarefy::model::tokenizer {

class PieceSink {
 public:
  virtual ~PieceSink() = default;
  // `piece` is not empty and lives during the call only.
  virtual Status accept(std::string_view piece) = 0;
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // Pre: text is UTF-8 and not empty.
  virtual Status split(std::string_view text, RegexScratch& scratch, PieceSink& out) const = 0;
};

struct PreTokenizers {
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  // The last step of the file writes each byte as a character (the byte-level alphabet). It is not among `steps`: the caller
  // does it to each piece, so that it can be left out for pieces that came before.
  bool byte_level = false;
};

// The steps of a file in their order; none for null. Kinds: Split, ByteLevel, Digits, Sequence. A `split_pattern` that is not
// empty stands for the pattern of the first Split.
Expected<PreTokenizers> parse_pre_tokenizers(const Json& value, std::string_view place,
                                             std::string_view split_pattern = {});

// Sends text through all steps.
Status pre_tokenize(const PreTokenizers& pre_tokenizers, std::string_view text, RegexScratch& scratch, PieceSink& out);

}  // namespace rarefy::model::tokenizer
