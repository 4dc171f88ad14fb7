#include "rarefy/model/tokenizer.h"

#include <algorithm>
#include <new>
#include <utility>

#include "model/tokenizer/fields.h"
#include "model/tokenizer/piece_encoder.h"
#include "model/tokenizer/tokenizer_impl.h"
#include "model/tokenizer/utf8.h"

namespace rarefy {
namespace mt = model::tokenizer;
namespace {

// Positions in a piece are 32-bit.
constexpr std::size_t kMaxTextBytes = std::size_t{1} << 30;

const model::Json& member_or_null(const model::Json& object, std::string_view key) {
  static const model::Json null_value;
  const model::Json* value = mt::find_member(object, key);
  return value == nullptr ? null_value : *value;
}

Status unknown_id(int32_t id, int32_t vocab_size) {
  return Status::invalid_argument("expected ids of tokens, below " + std::to_string(vocab_size) + ", got " +
                                  std::to_string(id) + ", which is none of this tokenizer");
}

}  // namespace

Expected<std::unique_ptr<Tokenizer::Impl>> Tokenizer::Impl::parse(const model::Json& json,
                                                                  const TokenizerOptions& options) {
  if (!json.is_object()) return mt::unexpected("tokenizer.json", "an object", json);
  RAREFY_ASSIGN_OR_RETURN(const model::Json* model_json, mt::require_object(json, "model", ""));
  RAREFY_ASSIGN_OR_RETURN(mt::Bpe bpe, mt::Bpe::parse(*model_json, "model"));
  RAREFY_ASSIGN_OR_RETURN(auto normalizers, mt::parse_normalizers(member_or_null(json, "normalizer"), "normalizer"));
  RAREFY_ASSIGN_OR_RETURN(auto added, mt::AddedTokens::parse(mt::find_member(json, "added_tokens"), "added_tokens",
                                                             bpe.vocabulary(), normalizers));
  std::unique_ptr<Impl> impl(new Impl(std::move(bpe), std::move(added)));
  impl->normalizers_ = std::move(normalizers);
  RAREFY_ASSIGN_OR_RETURN(impl->pre_tokenizers_, mt::parse_pre_tokenizers(member_or_null(json, "pre_tokenizer"),
                                                                          "pre_tokenizer", options.split_pattern));
  const auto is_token = [&](int32_t id) { return impl->token(id) != nullptr; };
  RAREFY_ASSIGN_OR_RETURN(impl->post_processor_,
                          mt::parse_post_processor(member_or_null(json, "post_processor"), "post_processor", is_token));
  RAREFY_ASSIGN_OR_RETURN(impl->decoder_, mt::Decoder::parse(member_or_null(json, "decoder"), "decoder"));
  return impl;
}

Expected<std::vector<int32_t>> Tokenizer::Impl::encode(std::string_view text, const EncodeOptions& options) const {
  if (text.size() > kMaxTextBytes) {
    return Status::invalid_argument("expected at most " + std::to_string(kMaxTextBytes) + " bytes of text, got " +
                                    std::to_string(text.size()) + "; encode it in parts");
  }
  if (const auto offset = mt::first_malformed_byte(text)) {
    return Status::invalid_argument("expected text in UTF-8, got a malformed sequence at byte " + std::to_string(*offset) +
                                    " of " + std::to_string(text.size()) + "; convert the text, for instance with iconv");
  }
  RAREFY_ASSIGN_OR_RETURN(mt::RegexScratch scratch, mt::RegexScratch::make());
  std::vector<int32_t> ids;
  if (options.add_special_tokens) ids = post_processor_.prefix;
  mt::PieceEncoder pieces(bpe_, pre_tokenizers_.byte_level, ids);
  RAREFY_ASSIGN_OR_RETURN(const auto segments,
                          added_.split(text, mt::AddedTokens::Stage::raw, options.parse_special, scratch));
  for (const mt::Segment& segment : segments) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
    } else {
      RAREFY_RETURN_IF_ERROR(encode_text(segment.text, options, scratch, pieces, ids));
    }
  }
  if (options.add_special_tokens) ids.insert(ids.end(), post_processor_.suffix.begin(), post_processor_.suffix.end());
  return ids;
}

Status Tokenizer::Impl::encode_text(std::string_view text, const EncodeOptions& options, mt::RegexScratch& scratch,
                                    mt::PieceSink& pieces, std::vector<int32_t>& ids) const {
  std::string normalized;
  if (!normalizers_.empty()) {
    RAREFY_ASSIGN_OR_RETURN(normalized, mt::normalize(normalizers_, std::string(text), scratch));
    text = normalized;
  }
  RAREFY_ASSIGN_OR_RETURN(const auto segments,
                          added_.split(text, mt::AddedTokens::Stage::normalized, options.parse_special, scratch));
  for (const mt::Segment& segment : segments) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
    } else {
      RAREFY_RETURN_IF_ERROR(mt::pre_tokenize(pre_tokenizers_, segment.text, scratch, pieces));
    }
  }
  return {};
}

Status Tokenizer::Impl::append_bytes(int32_t id, bool skip_special_tokens, DecodeState& state, std::string& bytes) const {
  const std::string* content = token(id);
  if (content == nullptr) return unknown_id(id, vocab_size());
  if (skip_special_tokens && added_.is_special(*content)) return {};
  if (!state.is_first) bytes += decoder_.separator();
  state.is_first = false;
  decoder_.push(*content, state.byte_run, bytes);
  return {};
}

int32_t Tokenizer::Impl::vocab_size() const { return std::max(bpe_.vocabulary().size(), added_.vocabulary().size()); }

int32_t Tokenizer::Impl::token_to_id(std::string_view token) const {
  const int32_t id = added_.vocabulary().id(token);
  return id >= 0 ? id : bpe_.vocabulary().id(token);
}

const std::string* Tokenizer::Impl::token(int32_t id) const {
  const std::string* added = added_.vocabulary().token(id);
  return added != nullptr ? added : bpe_.vocabulary().token(id);
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Expected<Tokenizer> Tokenizer::load(const std::filesystem::path& tokenizer_json, const TokenizerOptions& options) {
  RAREFY_ASSIGN_OR_RETURN(const model::Json json, model::read_json_file(tokenizer_json));
  auto impl = Impl::parse(json, options);
  if (!impl) return impl.status().with_context(tokenizer_json.string());
  return Tokenizer(*std::move(impl));
}

Expected<Tokenizer> Tokenizer::parse(std::string_view json, const TokenizerOptions& options) {
  auto value = model::parse_json(json);
  if (!value) return value.status().with_context("tokenizer.json");
  RAREFY_ASSIGN_OR_RETURN(auto impl, Impl::parse(*value, options));
  return Tokenizer(std::move(impl));
}

Expected<std::vector<int32_t>> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  try {
    return impl_->encode(text, options);
  } catch (const std::bad_alloc&) {
    return Status::resource_exhausted("out of memory while tokenizing " + std::to_string(text.size()) + " bytes");
  }
}

Expected<std::string> Tokenizer::decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const {
  std::string bytes, text;
  DecodeState state;
  for (const int32_t id : ids) RAREFY_RETURN_IF_ERROR(impl_->append_bytes(id, skip_special_tokens, state, bytes));
  impl_->finish(state, bytes);
  mt::move_complete_characters(bytes, text, /*at_end=*/true);
  return text;
}

int32_t Tokenizer::vocab_size() const { return impl_->vocab_size(); }

int32_t Tokenizer::token_to_id(std::string_view token) const { return impl_->token_to_id(token); }

Expected<std::string> Tokenizer::id_to_token(int32_t id) const {
  const std::string* token = impl_->token(id);
  if (token == nullptr) return unknown_id(id, vocab_size());
  return *token;
}

Expected<std::string> Tokenizer::Stream::push(int32_t id) {
  std::string text;
  RAREFY_RETURN_IF_ERROR(tokenizer_->impl_->append_bytes(id, skip_special_tokens_, state_, pending_bytes_));
  mt::move_complete_characters(pending_bytes_, text, /*at_end=*/false);
  return text;
}

std::string Tokenizer::Stream::flush() {
  std::string text;
  tokenizer_->impl_->finish(state_, pending_bytes_);
  mt::move_complete_characters(pending_bytes_, text, /*at_end=*/true);
  state_ = {};
  return text;
}

}  // namespace rarefy
