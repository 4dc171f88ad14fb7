// Linear attention (gated DeltaNet): projections, convolution, delta rule, gated norm. The state lies with the sink.
#include <cmath>

#include "cpu/delta_net/delta_net.h"
#include "model/blocks.h"

namespace rarefy::model {
namespace {

// softplus(x) = ln(1 + e^x) without overflow.
float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// Log decay and beta of every token and value head, from the last columns of the stacked product.
void fill_gates(const BlockContext& context, const DeltaNetWeights& weights, int64_t stride, int64_t first_column) {
  const int32_t heads = context.config.linear.num_value_heads;
  float* log_decay = context.scratch.gates;              // [num_tokens, num_value_heads] f32
  float* beta = log_decay + context.num_tokens * heads;  // [num_tokens, num_value_heads] f32
  for (int64_t row = 0; row < context.num_tokens; ++row) {
    const float* b = context.scratch.wide + row * stride + first_column;
    const float* a = b + heads;
    for (int32_t head = 0; head < heads; ++head) {
      const auto index = static_cast<std::size_t>(head);
      log_decay[row * heads + head] = weights.decay[index] * softplus(a[head] + weights.dt_bias[index]);
      beta[row * heads + head] = 1.0f / (1.0f + std::exp(-b[head]));
    }
  }
}

}  // namespace

Status run_mixer(const BlockContext& context, const DeltaNetWeights& weights) {
  const LinearAttentionConfig& linear = context.config.linear;
  ForwardScratch::Impl& scratch = context.scratch;
  const int64_t num_tokens = context.num_tokens;
  const int64_t conv_width = linear.conv_width(), value_width = linear.value_width(), key_width = linear.key_width();
  const int64_t stride = conv_width + value_width + int64_t{2} * linear.num_value_heads;  // qkv, z, b, a
  const int64_t rule_floats = linear.state_floats() - linear.conv_state_floats();
  RAREFY_ASSIGN_OR_RETURN(const LayerState state, context.sink.state(context.layer));

  RAREFY_RETURN_IF_ERROR(weights.in.run(scratch.normed, num_tokens, scratch.matmul, scratch.wide));
  cpu::causal_conv_silu({.x = scratch.wide,
                         .x_row_stride = stride,
                         .weight = weights.conv.data(),
                         .before = state.before == nullptr ? nullptr : state.before + rule_floats,
                         .num_rows = num_tokens,
                         .num_channels = conv_width,
                         .num_taps = linear.conv_kernel,
                         .out = scratch.convolved,
                         .after = state.after + rule_floats});
  float* q = scratch.convolved;
  float* k = q + key_width;
  const auto q_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(linear.key_head_dim)));
  cpu::l2_normalise_heads(q_scale, num_tokens, conv_width, linear.num_key_heads, linear.key_head_dim, q);
  cpu::l2_normalise_heads(1.0f, num_tokens, conv_width, linear.num_key_heads, linear.key_head_dim, k);
  fill_gates(context, weights, stride, conv_width + value_width);
  const bool done = cpu::delta_rule({.q = q,
                                     .k = k,
                                     .v = k + key_width,
                                     .row_stride = conv_width,
                                     .log_decay = scratch.gates,
                                     .beta = scratch.gates + num_tokens * linear.num_value_heads,
                                     .before = state.before,
                                     .num_rows = num_tokens,
                                     .num_key_heads = linear.num_key_heads,
                                     .num_value_heads = linear.num_value_heads,
                                     .key_head_dim = linear.key_head_dim,
                                     .value_head_dim = linear.value_head_dim,
                                     .after = state.after,
                                     .out = scratch.mixed},
                                    scratch.delta);
  if (!done) return Status::resource_exhausted("out of memory for the delta rule; free memory");
  cpu::gated_rms_norm({.weight = weights.norm.data(),
                       .gate = scratch.wide + conv_width,
                       .gate_row_stride = stride,
                       .epsilon = context.config.rms_norm_eps,
                       .num_rows = num_tokens,
                       .num_heads = linear.num_value_heads,
                       .head_dim = linear.value_head_dim,
                       .inout = scratch.mixed});
  return weights.output.run(scratch.mixed, num_tokens, scratch.matmul, scratch.normed);
}

}  // namespace rarefy::model
