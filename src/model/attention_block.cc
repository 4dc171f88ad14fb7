// Full and sliding attention: projections, norms of heads, rotation, query temperature, the sink's attention, output gate.
#include <algorithm>
#include <cmath>

#include "cpu/elementwise/elementwise.h"
#include "model/blocks.h"

namespace rarefy::model {
namespace {

// Angles in double: at position 262,144 an f32 product is off by up to 0.016 radians.
void fill_rotation(const RopeConfig& rope, int64_t first_position, int64_t num_tokens, const Rotation& rotation) {
  const auto half = static_cast<int64_t>(rope.inverse_frequency.size());
  for (int64_t row = 0; row < num_tokens; ++row) {
    for (int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(first_position + row) * rope.inverse_frequency[static_cast<std::size_t>(j)];
      rotation.cos[row * half + j] = static_cast<float>(rope.attention_factor * std::cos(angle));
      rotation.sin[row * half + j] = static_cast<float>(rope.attention_factor * std::sin(angle));
    }
  }
}

// Where q, k, v and the gate lie in a row of the stacked product.
struct Columns {
  explicit Columns(const ModelConfig& config)
      : q_head_stride(config.blocks.output_gate ? 2 * config.head_dim : config.head_dim),
        k(config.num_q_heads * q_head_stride),
        kv_width(int64_t{config.num_kv_heads} * config.head_dim),
        v(k + kv_width),
        stride(v + kv_width) {}
  int64_t q_head_stride;  // a head's gate follows its query
  int64_t k, kv_width, v, stride;
};

void norm_heads(const BlockContext& context, const Columns& columns, const AttentionWeights& weights) {
  if (!context.config.blocks.query_key_norm) return;
  cpu::HeadNormArgs args{.x = context.scratch.wide,
                         .x_row_stride = columns.stride,
                         .x_head_stride = columns.q_head_stride,
                         .weight = weights.q_norm.data(),
                         .epsilon = context.config.rms_norm_eps,
                         .num_rows = context.num_tokens,
                         .num_heads = context.config.num_q_heads,
                         .head_dim = context.config.head_dim};
  cpu::rms_norm_heads(args);
  args.x += columns.k;
  args.x_head_stride = context.config.head_dim;
  args.weight = weights.k_norm.data();
  args.num_heads = context.config.num_kv_heads;
  cpu::rms_norm_heads(args);
}

// Splits the rows of the stacked product into q, k and v and rotates q and k.
void split_and_rotate(const BlockContext& context, const Columns& columns) {
  const ModelConfig& config = context.config;
  ForwardScratch::Impl& scratch = context.scratch;
  const bool local = config.layers[static_cast<std::size_t>(context.layer)] == LayerKind::sliding_attention;
  const Rotation& rotation = local ? scratch.local_rotation : scratch.rotation;
  cpu::RopeArgs args{.x = scratch.wide,
                     .x_row_stride = columns.stride,
                     .x_head_stride = columns.q_head_stride,
                     .cos = rotation.cos,
                     .sin = rotation.sin,
                     .num_rows = context.num_tokens,
                     .num_heads = config.num_q_heads,
                     .head_dim = config.head_dim,
                     .rotary_dim = local ? config.local_rope.rotary_dim : config.rope.rotary_dim,
                     .out = scratch.q};
  cpu::rope(args);
  args.x = scratch.wide + columns.k;
  args.x_head_stride = config.head_dim;
  args.num_heads = config.num_kv_heads;
  args.out = scratch.k;
  cpu::rope(args);
  for (int64_t row = 0; row < context.num_tokens; ++row) {
    const float* from = scratch.wide + row * columns.stride + columns.v;
    std::copy(from, from + columns.kv_width, scratch.v + row * columns.kv_width);
  }
}

// q times 1 + beta ln(1 + floor(position / original context)): 1 within the original context.
void heat_queries(const BlockContext& context) {
  const ModelConfig& config = context.config;
  if (config.query_temperature_beta == 0.0f) return;
  const int64_t width = int64_t{config.num_q_heads} * config.head_dim;
  for (int64_t row = 0; row < context.num_tokens; ++row) {
    const int64_t turns = (context.first_position + row) / config.query_temperature_tokens;
    if (turns == 0) continue;
    const double factor = 1.0 + config.query_temperature_beta * std::log(1.0 + static_cast<double>(turns));
    cpu::scale(static_cast<float>(factor), width, context.scratch.q + row * width);
  }
}

void gate_output(const BlockContext& context, const Columns& columns) {
  if (!context.config.blocks.output_gate) return;
  cpu::sigmoid_gate({.gate = context.scratch.wide + context.config.head_dim,
                     .gate_row_stride = columns.stride,
                     .gate_head_stride = columns.q_head_stride,
                     .num_rows = context.num_tokens,
                     .num_heads = context.config.num_q_heads,
                     .head_dim = context.config.head_dim,
                     .inout = context.scratch.mixed});
}

}  // namespace

void fill_rotations(const ModelConfig& config, int64_t first_position, int64_t num_tokens, ForwardScratch::Impl& scratch) {
  fill_rotation(config.rope, first_position, num_tokens, scratch.rotation);
  fill_rotation(config.local_rope, first_position, num_tokens, scratch.local_rotation);
}

Status run_mixer(const BlockContext& context, const AttentionWeights& weights) {
  ForwardScratch::Impl& scratch = context.scratch;
  const Columns columns(context.config);
  RAREFY_RETURN_IF_ERROR(weights.qkv.run(scratch.normed, context.num_tokens, scratch.matmul, scratch.wide));
  norm_heads(context, columns, weights);
  split_and_rotate(context, columns);
  heat_queries(context);
  RAREFY_RETURN_IF_ERROR(context.sink.attend(context.layer, static_cast<int32_t>(context.num_tokens), scratch.q, scratch.k,
                                             scratch.v, scratch.mixed));
  gate_output(context, columns);
  return weights.output.run(scratch.mixed, context.num_tokens, scratch.matmul, scratch.normed);
}

}  // namespace rarefy::model
