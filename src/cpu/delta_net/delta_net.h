// Gated DeltaNet on the CPU: the causal convolution, the delta rule with its state, and the gated norm, in f32.
//
// Per value head with state S [key_head_dim, value_head_dim], for each token (q and k L2-normalised, q scaled):
//   S <- exp(g) S;   delta = beta (v - S^T k);   S <- S + k delta^T;   out = S^T q
// Many tokens go in chunks of kDeltaChunk, in which all but the state's own update are matrix products; few go one by one.
// Within a chunk, with G_i the sum of g up to token i and S0 the state before it:
//   N_i = beta_i (v_i - exp(G_i) S0^T k_i) - sum_{j<i} beta_i (k_i . k_j) exp(G_i - G_j) N_j
//   out_i = exp(G_i) S0^T q_i + sum_{j<=i} exp(G_i - G_j) (q_i . k_j) N_j
//   S = exp(G_n) S0 + sum_i exp(G_n - G_i) k_i N_i^T
// Only differences G_i - G_j <= 0 are exponentiated.
//
// Heads and rows are computed alone: results do not depend on the number of threads. Thread-safe; nothing is kept.
#pragma once

#include <cstdint>

#include "core/aligned_buffer.h"

namespace rarefy::cpu {

inline constexpr int32_t kDeltaChunk = 64;
// Below this many tokens a chunk's fixed cost exceeds that of single steps.
inline constexpr int32_t kMinDeltaChunk = 8;

// out[t] = silu(sum_i weight[i] x[t - num_taps + 1 + i]), channel by channel; what came before the first row is `before`.
struct CausalConvArgs {
  const float* x = nullptr;  // [num_rows, num_channels] f32; rows x_row_stride elements apart
  int64_t x_row_stride = 0;
  const float* weight = nullptr;  // [num_taps, num_channels] f32; the current token last
  const float* before = nullptr;  // [num_taps - 1, num_channels] f32; nullable = zeros
  int64_t num_rows = 0;
  int64_t num_channels = 0;
  int32_t num_taps = 0;
  float* out = nullptr;    // [num_rows, num_channels] f32; contiguous
  float* after = nullptr;  // [num_taps - 1, num_channels] f32; the last inputs; may be `before`
};
void causal_conv_silu(const CausalConvArgs& args);

// x <- factor x / sqrt(sum x^2 + 1e-6), head by head, in place.
void l2_normalise_heads(float factor, int64_t num_rows, int64_t row_stride, int32_t num_heads, int32_t head_dim,
                        float* x);  // [num_rows, num_heads, head_dim] f32; rows row_stride elements apart

struct DeltaRuleArgs {
  // Rows row_stride elements apart; q and k normalised, q scaled.
  const float* q = nullptr;  // [num_rows, num_key_heads, key_head_dim] f32
  const float* k = nullptr;  // [num_rows, num_key_heads, key_head_dim] f32
  const float* v = nullptr;  // [num_rows, num_value_heads, value_head_dim] f32
  int64_t row_stride = 0;
  const float* log_decay = nullptr;  // [num_rows, num_value_heads] f32; g <= 0
  const float* beta = nullptr;       // [num_rows, num_value_heads] f32
  const float* before = nullptr;     // [num_value_heads, key_head_dim, value_head_dim] f32; nullable = zeros
  int64_t num_rows = 0;
  int32_t num_key_heads = 0;
  int32_t num_value_heads = 0;  // a multiple of num_key_heads; value head j belongs to key head j / (their quotient)
  int32_t key_head_dim = 0;     // a multiple of 16
  int32_t value_head_dim = 0;   // a multiple of 16
  float* after = nullptr;       // [num_value_heads, key_head_dim, value_head_dim] f32; may be `before`
  float* out = nullptr;         // [num_rows, num_value_heads, value_head_dim] f32; contiguous
};
// False when memory for `scratch` is exhausted.
[[nodiscard]] bool delta_rule(const DeltaRuleArgs& args, AlignedBuffer& scratch);

// inout <- weight * inout / sqrt(mean(inout^2) + epsilon) * silu(gate), head by head.
struct GatedNormArgs {
  const float* weight = nullptr;  // [head_dim] f32
  const float* gate = nullptr;    // [num_rows, num_heads, head_dim] f32; rows gate_row_stride elements apart
  int64_t gate_row_stride = 0;
  float epsilon = 0.0f;
  int64_t num_rows = 0;
  int32_t num_heads = 0;
  int32_t head_dim = 0;    // a multiple of 16
  float* inout = nullptr;  // [num_rows, num_heads, head_dim] f32; contiguous
};
void gated_rms_norm(const GatedNormArgs& args);

}  // namespace rarefy::cpu
