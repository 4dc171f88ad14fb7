#include "rarefy/model/model.h"

#include <algorithm>
#include <limits>
#include <new>

#include "model/checkpoint.h"
#include "model/config_reader.h"
#include "model/forward.h"
#include "model/json_file.h"
#include "model/weights.h"

namespace rarefy {

ForwardScratch::ForwardScratch() : impl_(std::make_unique<Impl>()) {}
ForwardScratch::ForwardScratch(ForwardScratch&&) noexcept = default;
ForwardScratch& ForwardScratch::operator=(ForwardScratch&&) noexcept = default;
ForwardScratch::~ForwardScratch() = default;

class Model::Impl {
 public:
  Impl(ModelConfig config_in, Tokenizer tokenizer_in, model::Weights weights_in, DType weight_dtype_in)
      : config(std::move(config_in)),
        tokenizer(std::move(tokenizer_in)),
        weights(std::move(weights_in)),
        weight_dtype(weight_dtype_in) {}

  ModelConfig config;
  Tokenizer tokenizer;
  model::Weights weights;
  DType weight_dtype;
};

namespace {

DType choose_weight_dtype(ComputeType compute, DType checkpoint_dtype) {
  if (compute == ComputeType::f32) return DType::f32;
  if (compute == ComputeType::bf16) return DType::bf16;
  return checkpoint_dtype == DType::bf16 && cpu::has_fast_bf16_matmul() ? DType::bf16 : DType::f32;
}

// Ids of the token strings in tokenizer_config.json; a string that the tokenizer lacks means that the files do not belong
// together.
Status add_special_tokens(const std::filesystem::path& folder, const Tokenizer& tokenizer, ModelConfig& config) {
  RAREFY_ASSIGN_OR_RETURN(const model::SpecialTokens tokens, model::read_special_tokens(folder));
  const auto find = [&](const std::string& token, const char* role, int32_t& id) -> Status {
    id = token.empty() ? -1 : tokenizer.token_to_id(token);
    if (!token.empty() && id < 0) {
      return Status::not_found((folder / "tokenizer.json").string() + ": expected the " + role + " token '" +
                               model::brief(token) +
                               "' that tokenizer_config.json names, found none; fetch both files from the same place");
    }
    return {};
  };
  int32_t bos = -1, eos = -1;
  RAREFY_RETURN_IF_ERROR(find(tokens.bos, "bos", bos));
  RAREFY_RETURN_IF_ERROR(find(tokens.eos, "eos", eos));
  if (config.bos_token_id < 0) config.bos_token_id = bos;
  auto& stop_ids = config.stop_token_ids;
  if (eos >= 0 && std::find(stop_ids.begin(), stop_ids.end(), eos) == stop_ids.end()) stop_ids.push_back(eos);
  return {};
}

}  // namespace

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

Expected<Model> Model::load(const std::filesystem::path& folder, const ModelOptions& options) {
  try {
    RAREFY_ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::load(folder));
    RAREFY_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::load(folder / "tokenizer.json"));
    if (tokenizer.vocab_size() > config.vocab_size) {
      return Status::invalid_argument(
          folder.string() + ": expected a tokenizer of at most vocab_size = " + std::to_string(config.vocab_size) +
          " ids, got " + std::to_string(tokenizer.vocab_size()) +
          "; tokenizer.json and config.json are of different models");
    }
    RAREFY_RETURN_IF_ERROR(add_special_tokens(folder, tokenizer, config));
    RAREFY_ASSIGN_OR_RETURN(const model::Checkpoint checkpoint, model::Checkpoint::open(folder));
    auto stored_dtype = model::checkpoint_dtype(checkpoint);
    if (!stored_dtype) return stored_dtype.status().with_context(folder.string());
    config.checkpoint_dtype = *stored_dtype;
    const DType weight_dtype = choose_weight_dtype(options.compute, config.checkpoint_dtype);
    auto weights = model::Weights::load(checkpoint, config, weight_dtype);
    if (!weights) return weights.status().with_context(folder.string());
    return Model(std::make_unique<Impl>(std::move(config), std::move(tokenizer), *std::move(weights), weight_dtype));
  } catch (const std::bad_alloc&) {
    return Status::resource_exhausted(folder.string() + ": out of memory while loading the model");
  } catch (const std::filesystem::filesystem_error& error) {
    return Status::io_error(error.what());
  }
}

const ModelConfig& Model::config() const { return impl_->config; }
const Tokenizer& Model::tokenizer() const { return impl_->tokenizer; }

std::string_view Model::compute_name() const {
  return impl_->weight_dtype == DType::bf16 ? "bf16 weights, f32 accumulation" : "f32";
}

int64_t Model::weight_bytes() const { return impl_->weights.bytes_per_step(); }

Status Model::forward(std::span<const int32_t> tokens, int64_t first_position, AttentionSink& attention,
                      ForwardScratch& scratch, LogitRows rows, float* logits) const {
  const ModelConfig& config = impl_->config;
  if (tokens.empty() || tokens.size() > static_cast<std::size_t>(std::numeric_limits<int32_t>::max())) {
    return Status::invalid_argument("expected at least one token, got " + std::to_string(tokens.size()));
  }
  if (first_position < 0)
    return Status::invalid_argument("expected a position of at least 0, got " + std::to_string(first_position));
  if (rows != LogitRows::none && logits == nullptr)
    return Status::invalid_argument("expected a buffer for the logits, got null");
  for (const int32_t token : tokens) {
    if (token < 0 || token >= config.vocab_size) {
      return Status::invalid_argument("expected token ids from 0 to " + std::to_string(config.vocab_size - 1) + ", got " +
                                      std::to_string(token));
    }
    if (std::find(config.media_token_ids.begin(), config.media_token_ids.end(), token) != config.media_token_ids.end()) {
      return Status::unsupported("token " + std::to_string(token) +
                                 " stands for an image, video or sound; the vision and audio parts of this checkpoint are "
                                 "missing here, its text part works without them");
    }
  }
  RAREFY_RETURN_IF_ERROR(
      model::forward(config, impl_->weights, tokens, first_position, attention, scratch.impl(), rows, logits));

  // The table of a checkpoint may be padded; an id that the tokenizer cannot decode must never be chosen.
  const int32_t known = impl_->tokenizer.vocab_size();
  const std::size_t num_rows = rows == LogitRows::none ? 0 : rows == LogitRows::last ? 1 : tokens.size();
  for (std::size_t row = 0; row < num_rows; ++row) {
    float* end = logits + (row + 1) * static_cast<std::size_t>(config.vocab_size);
    std::fill(end - (config.vocab_size - known), end, -std::numeric_limits<float>::infinity());
  }
  return {};
}

}  // namespace rarefy
