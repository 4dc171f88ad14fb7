#include "model/forward.h"

#include "cpu/elementwise/elementwise.h"
#include "model/blocks.h"

namespace rarefy::model {
namespace {

// The block's result, normed once more where the family does so, onto the residual stream. `post_norm` [hidden_size] f32; empty
// = none
void add_to_residual(const BlockContext& context, const std::vector<float>& post_norm) {
  ForwardScratch::Impl& scratch = context.scratch;
  const int64_t hidden = context.config.hidden_size;
  if (!post_norm.empty()) {
    cpu::rms_norm(scratch.normed, post_norm.data(), context.config.rms_norm_eps, context.num_tokens, hidden,
                  scratch.normed);
  }
  cpu::add(scratch.normed, context.num_tokens * hidden, scratch.hidden);
}

Status run_layer(const BlockContext& context, const LayerWeights& weights) {
  ForwardScratch::Impl& scratch = context.scratch;
  const ModelConfig& config = context.config;
  const int64_t hidden = config.hidden_size;
  cpu::rms_norm(scratch.hidden, weights.mixer_norm.data(), config.rms_norm_eps, context.num_tokens, hidden, scratch.normed);
  RAREFY_RETURN_IF_ERROR(std::visit([&](const auto& mixer) { return run_mixer(context, mixer); }, weights.mixer));
  add_to_residual(context, weights.post_mixer_norm);

  cpu::rms_norm(scratch.hidden, weights.mlp_norm.data(), config.rms_norm_eps, context.num_tokens, hidden, scratch.normed);
  RAREFY_RETURN_IF_ERROR(run_mlp(context, weights));
  add_to_residual(context, weights.post_mlp_norm);
  return {};
}

}  // namespace

Status forward(const ModelConfig& config, const Weights& weights, std::span<const int32_t> tokens, int64_t first_position,
               AttentionSink& attention, ForwardScratch::Impl& scratch, LogitRows rows, float* logits) {
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  const int64_t hidden = config.hidden_size;
  RAREFY_RETURN_IF_ERROR(scratch.reserve(config, num_tokens));
  fill_rotations(config, first_position, num_tokens, scratch);
  for (int64_t i = 0; i < num_tokens; ++i) {
    weights.embedding_table().read_row(tokens[static_cast<std::size_t>(i)], scratch.hidden + i * hidden);
  }
  if (weights.embedding_scale != 1.0f) cpu::scale(weights.embedding_scale, num_tokens * hidden, scratch.hidden);
  if (scratch.observer) scratch.observer(-1, num_tokens, scratch.hidden);
  BlockContext context{config, 0, num_tokens, first_position, attention, scratch};
  for (; context.layer < config.num_layers; ++context.layer) {
    RAREFY_RETURN_IF_ERROR(run_layer(context, weights.layers[static_cast<std::size_t>(context.layer)]));
    if (scratch.observer) scratch.observer(context.layer, num_tokens, scratch.hidden);
  }
  if (rows == LogitRows::none) return {};

  const int64_t first_row = rows == LogitRows::last ? num_tokens - 1 : 0;
  const int64_t num_rows = num_tokens - first_row;
  cpu::rms_norm(scratch.hidden + first_row * hidden, weights.final_norm.data(), config.rms_norm_eps, num_rows, hidden,
                scratch.normed);
  RAREFY_RETURN_IF_ERROR(weights.head.run(scratch.normed, num_rows, scratch.matmul, logits));
  if (config.final_soft_cap > 0.0f) cpu::soft_cap(config.final_soft_cap, num_rows * config.vocab_size, logits);
  return {};
}

}  // namespace rarefy::model
