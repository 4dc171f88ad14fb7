#include "model/forward.h"

#include <algorithm>
#include <cmath>

#include "cpu/elementwise/elementwise.h"

namespace rarefy {
namespace {

int64_t q_width(const ModelConfig& config) { return int64_t{config.num_q_heads} * config.head_dim; }
int64_t kv_width(const ModelConfig& config) { return int64_t{config.num_kv_heads} * config.head_dim; }

}  // namespace

Status ForwardScratch::Impl::reserve(const ModelConfig& config, int64_t num_tokens) {
  struct Part {
    float** pointer;
    int64_t width;
  };
  const int64_t half = config.rope.rotary_dim / 2;
  const Part parts[] = {{&hidden, config.hidden_size},
                        {&normed, config.hidden_size},
                        {&wide, std::max(q_width(config) + 2 * kv_width(config), int64_t{2} * config.intermediate_size)},
                        {&q, q_width(config)},
                        {&k, kv_width(config)},
                        {&v, kv_width(config)},
                        {&attention, q_width(config)},
                        {&activated, config.intermediate_size},
                        {&cos, half},
                        {&sin, half}};
  constexpr int64_t kLine = AlignedBuffer::kAlignmentBytes / sizeof(float);
  const auto rounded = [&](const Part& part) { return (part.width * num_tokens + kLine - 1) / kLine * kLine; };
  int64_t total = 0;
  for (const Part& part : parts) total += rounded(part);
  auto* next = storage_.reserve_elements<float>(static_cast<std::size_t>(total));
  if (next == nullptr) {
    return Status::resource_exhausted("out of memory for the activations of " + std::to_string(num_tokens) +
                                      " tokens; pass fewer tokens at a time");
  }
  for (const Part& part : parts) {
    *part.pointer = next;
    next += rounded(part);
  }
  return {};
}

namespace model {
namespace {

// Angles in double: at position 262,144 an f32 product is off by up to 0.016 radians.
void fill_rotation(const RopeConfig& rope, int64_t first_position, int64_t num_tokens, float* cos, float* sin) {
  const auto half = static_cast<int64_t>(rope.inverse_frequency.size());
  for (int64_t row = 0; row < num_tokens; ++row) {
    for (int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(first_position + row) * rope.inverse_frequency[static_cast<std::size_t>(j)];
      cos[row * half + j] = static_cast<float>(rope.attention_factor * std::cos(angle));
      sin[row * half + j] = static_cast<float>(rope.attention_factor * std::sin(angle));
    }
  }
}

// Splits the rows of the stacked product into q, k and v and rotates q and k.
void split_and_rotate(const ModelConfig& config, int64_t num_tokens, ForwardScratch::Impl& scratch) {
  const int64_t q_columns = q_width(config), kv_columns = kv_width(config), stride = q_columns + 2 * kv_columns;
  cpu::RopeArgs args{.x = scratch.wide,
                     .x_row_stride = stride,
                     .cos = scratch.cos,
                     .sin = scratch.sin,
                     .num_rows = num_tokens,
                     .num_heads = config.num_q_heads,
                     .head_dim = config.head_dim,
                     .rotary_dim = config.rope.rotary_dim,
                     .out = scratch.q};
  cpu::rope(args);
  args.x = scratch.wide + q_columns;
  args.num_heads = config.num_kv_heads;
  args.out = scratch.k;
  cpu::rope(args);
  for (int64_t row = 0; row < num_tokens; ++row) {
    const float* from = scratch.wide + row * stride + q_columns + kv_columns;
    std::copy(from, from + kv_columns, scratch.v + row * kv_columns);
  }
}

Status run_layer(const ModelConfig& config, const LayerWeights& weights, int32_t layer, int64_t num_tokens,
                 AttentionSink& attention, ForwardScratch::Impl& scratch) {
  const int64_t hidden = config.hidden_size;
  cpu::rms_norm(scratch.hidden, weights.attention_norm.data(), config.rms_norm_eps, num_tokens, hidden, scratch.normed);
  RAREFY_RETURN_IF_ERROR(weights.qkv.run(scratch.normed, num_tokens, scratch.matmul, scratch.wide));
  split_and_rotate(config, num_tokens, scratch);
  RAREFY_RETURN_IF_ERROR(
      attention.attend(layer, static_cast<int32_t>(num_tokens), scratch.q, scratch.k, scratch.v, scratch.attention));
  RAREFY_RETURN_IF_ERROR(weights.output.run(scratch.attention, num_tokens, scratch.matmul, scratch.normed));
  cpu::add(scratch.normed, num_tokens * hidden, scratch.hidden);

  cpu::rms_norm(scratch.hidden, weights.mlp_norm.data(), config.rms_norm_eps, num_tokens, hidden, scratch.normed);
  RAREFY_RETURN_IF_ERROR(weights.gate_up.run(scratch.normed, num_tokens, scratch.matmul, scratch.wide));
  cpu::silu_mul(scratch.wide, num_tokens, config.intermediate_size, scratch.activated);
  RAREFY_RETURN_IF_ERROR(weights.down.run(scratch.activated, num_tokens, scratch.matmul, scratch.normed));
  cpu::add(scratch.normed, num_tokens * hidden, scratch.hidden);
  return {};
}

}  // namespace

Status forward(const ModelConfig& config, const Weights& weights, std::span<const int32_t> tokens, int64_t first_position,
               AttentionSink& attention, ForwardScratch::Impl& scratch, LogitRows rows, float* logits) {
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  const int64_t hidden = config.hidden_size;
  RAREFY_RETURN_IF_ERROR(scratch.reserve(config, num_tokens));
  fill_rotation(config.rope, first_position, num_tokens, scratch.cos, scratch.sin);
  for (int64_t i = 0; i < num_tokens; ++i) {
    weights.embedding_table().read_row(tokens[static_cast<std::size_t>(i)], scratch.hidden + i * hidden);
  }
  if (scratch.observer) scratch.observer(-1, num_tokens, scratch.hidden);
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    RAREFY_RETURN_IF_ERROR(
        run_layer(config, weights.layers[static_cast<std::size_t>(layer)], layer, num_tokens, attention, scratch));
    if (scratch.observer) scratch.observer(layer, num_tokens, scratch.hidden);
  }
  if (rows == LogitRows::none) return {};

  const int64_t first_row = rows == LogitRows::last ? num_tokens - 1 : 0;
  const int64_t num_rows = num_tokens - first_row;
  cpu::rms_norm(scratch.hidden + first_row * hidden, weights.final_norm.data(), config.rms_norm_eps, num_rows, hidden,
                scratch.normed);
  return weights.head.run(scratch.normed, num_rows, scratch.matmul, logits);
}

}  // namespace model
}  // namespace rarefy
