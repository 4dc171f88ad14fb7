// The element-wise operations and the matrix product of a decoder's forward pass in double precision: the oracle of the
// tests of src/cpu/elementwise and src/cpu/matmul. Plain loops over already rounded f32 inputs. Thread-safe; nothing is kept.
#pragma once

#include <cstdint>
#include <vector>

namespace rarefy::ref {

std::vector<double> rms_norm(const float* x,       // [num_rows, dim] f32
                             const float* weight,  // [dim] f32
                             double epsilon, int64_t num_rows, int64_t dim);

// Half-split rotary embedding at consecutive positions. With `frequency_j` the inverse frequency of the pair
// (j, j + rotary_dim / 2) and angle = position * frequency_j:
//   x'_j = a (x_j cos - x_{j + rotary_dim / 2} sin),   x'_{j + rotary_dim / 2} = a (x_{j + rotary_dim / 2} cos + x_j sin)
std::vector<double> rope(const float* x,  // [num_rows, num_heads, head_dim] f32; rows x_row_stride elements apart
                         int64_t x_row_stride,
                         const float* inverse_frequency,  // [rotary_dim / 2] f32
                         double attention_factor, int64_t first_position, int64_t num_rows, int32_t num_heads,
                         int32_t head_dim, int32_t rotary_dim);

std::vector<double> silu_mul(const float* gate_up,  // [num_rows, 2, dim] f32; gate first
                             int64_t num_rows, int64_t dim);

// gelu(gate) * up, gelu(z) = 0.5 z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))).
std::vector<double> gelu_tanh_mul(const float* gate_up,  // [num_rows, 2, dim] f32; gate first
                                  int64_t num_rows, int64_t dim);

// value / (1 + exp(-gate)).
std::vector<double> sigmoid_mul(const float* gate,   // [count] f32
                                const float* value,  // [count] f32
                                int64_t count);

// cap * tanh(x / cap).
std::vector<double> soft_cap(const float* x,  // [count] f32
                             double cap, int64_t count);

// y = x W^T (+ bias). `magnitude`, when given, receives sum_k |x_k w_k| (+ |bias|): the scale of rounding errors.
std::vector<double> matmul(const float* x,       // [num_rows, in_dim] f32
                           const float* weight,  // [out_dim, in_dim] f32
                           const float* bias,    // [out_dim] f32; nullable
                           int64_t num_rows, int64_t in_dim, int64_t out_dim,
                           std::vector<double>* magnitude = nullptr);  // [num_rows, out_dim] f64; nullable

}  // namespace rarefy::ref
