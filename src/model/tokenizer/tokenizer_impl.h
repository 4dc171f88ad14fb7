// Tokenizer::Impl: the parts of a tokenizer.json and how text goes through them. Immutable after parsing; thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/bpe.h"
#include "model/tokenizer/decoder.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/post_processor.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "rarefy/model/tokenizer.h"

namespace rarefy {

class Tokenizer::Impl {
 public:
  static Expected<std::unique_ptr<Impl>> parse(const model::Json& json, const TokenizerOptions& options);

  Expected<std::vector<int32_t>> encode(std::string_view text, const EncodeOptions& options) const;
  // Appends the bytes of a token, with the separator when it is not the first that is written. Skips special tokens on request.
  Status append_bytes(int32_t id, bool skip_special_tokens, DecodeState& state, std::string& bytes) const;
  // Appends what waited for the token that did not come.
  void finish(DecodeState& state, std::string& bytes) const { decoder_.end_run(state.byte_run, bytes); }

  int32_t vocab_size() const;
  int32_t token_to_id(std::string_view token) const;
  const std::string* token(int32_t id) const;  // null when there is none

 private:
  Impl(model::tokenizer::Bpe bpe, model::tokenizer::AddedTokens added) : bpe_(std::move(bpe)), added_(std::move(added)) {}
  Status encode_text(std::string_view text, const EncodeOptions& options, model::tokenizer::RegexScratch& scratch,
                     model::tokenizer::PieceSink& pieces, std::vector<int32_t>& ids) const;

  std::vector<std::unique_ptr<model::tokenizer::Normalizer>> normalizers_;
  model::tokenizer::PreTokenizers pre_tokenizers_;
  model::tokenizer::Bpe bpe_;
  model::tokenizer::AddedTokens added_;
  model::tokenizer::PostProcessor post_processor_;
  model::tokenizer::Decoder decoder_;
};

}  // namespace rarefy
