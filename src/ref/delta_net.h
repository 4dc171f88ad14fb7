// Gated DeltaNet in double precision, token by token: the oracle of the tests of src/cpu/delta_net. Plain loops over already
// rounded f32 inputs. Thread-safe; nothing is kept.
#pragma once

#include <cstdint>
#include <vector>

namespace rarefy::ref {

// silu(sum_i weight[i] x[t - num_taps + 1 + i]); rows before the first are `before`.
std::vector<double> causal_conv_silu(const float* x,       // [num_rows, num_channels] f32
                                     const float* weight,  // [num_taps, num_channels] f32; the current token last
                                     const float* before,  // [num_taps - 1, num_channels] f32; nullable = zeros
                                     int64_t num_rows, int64_t num_channels, int32_t num_taps);

std::vector<double> l2_normalise(double factor,
                                 const float* x,  // [num_rows, dim] f32
                                 int64_t num_rows, int64_t dim);

struct DeltaRule {
  const float* q = nullptr;          // [num_rows, num_key_heads, key_head_dim] f32
  const float* k = nullptr;          // [num_rows, num_key_heads, key_head_dim] f32
  const float* v = nullptr;          // [num_rows, num_value_heads, value_head_dim] f32
  const float* log_decay = nullptr;  // [num_rows, num_value_heads] f32
  const float* beta = nullptr;       // [num_rows, num_value_heads] f32
  int64_t num_rows = 0;
  int32_t num_key_heads = 0, num_value_heads = 0, key_head_dim = 0, value_head_dim = 0;
};
// S <- exp(g) S; delta = beta (v - S^T k); S <- S + k delta^T; out = S^T q. `state` is replaced by the last one.
std::vector<double> delta_rule(const DeltaRule& rule,
                               std::vector<double>& state);  // [num_value_heads, key_head_dim, value_head_dim] f64

// weight * x / sqrt(mean(x^2) + epsilon) * silu(gate), row by row.
std::vector<double> gated_rms_norm(const float* x,       // [num_rows, dim] f32
                                   const float* weight,  // [dim] f32
                                   const float* gate,    // [num_rows, dim] f32
                                   double epsilon, int64_t num_rows, int64_t dim);

}  // namespace rarefy::ref
