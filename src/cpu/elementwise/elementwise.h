// The element-wise operations of a decoder's forward pass, in f32: RMS norms, rotary position embedding, gates, sums, soft
// caps, and rounding to bf16. SIMD with run-time dispatch; large calls use up to rarefy::num_threads() threads. Every row (and, in
// silu_mul and add, every element) is computed alone, so results depend neither on the number of rows nor on the threads.
//
// Pointers need no alignment. Thread-safe; nothing is kept. Outputs must not overlap inputs except where said.
#pragma once

#include <cstdint>

namespace rarefy::cpu {

// out = weight * x / sqrt(mean(x^2) + epsilon), row by row. `out` may be `x`.
void rms_norm(const float* x,       // [num_rows, dim] f32
              const float* weight,  // [dim] f32
              float epsilon, int64_t num_rows, int64_t dim,
              float* out);  // [num_rows, dim] f32

// The same for each head of wider rows, in place: x_row_stride elements from a row to the next, x_head_stride from a head to the
// next.
struct HeadNormArgs {
  float* x = nullptr;  // [num_rows, num_heads, head_dim] f32; strided
  int64_t x_row_stride = 0;
  int64_t x_head_stride = 0;
  const float* weight = nullptr;  // [head_dim] f32
  float epsilon = 0.0f;
  int64_t num_rows = 0;
  int32_t num_heads = 0;
  int32_t head_dim = 0;
};
void rms_norm_heads(const HeadNormArgs& args);

// Rotates components (j, j + rotary_dim / 2) of each head; components from rotary_dim on are copied. Reads heads out of wider
// rows (x_row_stride elements apart) and writes them contiguously.
struct RopeArgs {
  const float* x = nullptr;  // [num_rows, num_heads, head_dim] f32; rows x_row_stride elements apart
  int64_t x_row_stride = 0;
  int64_t x_head_stride = 0;   // elements from a head to the next; 0 = head_dim
  const float* cos = nullptr;  // [num_rows, rotary_dim / 2] f32
  const float* sin = nullptr;  // [num_rows, rotary_dim / 2] f32
  int64_t num_rows = 0;
  int32_t num_heads = 0;
  int32_t head_dim = 0;
  int32_t rotary_dim = 0;  // even, at most head_dim
  float* out = nullptr;    // [num_rows, num_heads, head_dim] f32; contiguous
};
void rope(const RopeArgs& args);

// out = silu(gate) * up, silu(z) = z / (1 + exp(-z)).
void silu_mul(const float* gate_up,  // [num_rows, 2, dim] f32; gate first
              int64_t num_rows, int64_t dim,
              float* out);  // [num_rows, dim] f32

// out = gelu(gate) * up, gelu(z) = z / (1 + exp(-2 u)), u = sqrt(2 / pi) (z + 0.044715 z^3): the tanh form.
void gelu_tanh_mul(const float* gate_up,  // [num_rows, 2, dim] f32; gate first
                   int64_t num_rows, int64_t dim,
                   float* out);  // [num_rows, dim] f32

// inout *= 1 / (1 + exp(-gate)), head by head. Heads of the gate are gate_head_stride elements apart, rows gate_row_stride.
struct SigmoidGateArgs {
  const float* gate = nullptr;  // [num_rows, num_heads, head_dim] f32; strided
  int64_t gate_row_stride = 0;
  int64_t gate_head_stride = 0;
  int64_t num_rows = 0;
  int32_t num_heads = 0;
  int32_t head_dim = 0;
  float* inout = nullptr;  // [num_rows, num_heads, head_dim] f32; contiguous
};
void sigmoid_gate(const SigmoidGateArgs& args);

// inout *= factor.
void scale(float factor, int64_t count,
           float* inout);  // [count] f32

// inout = cap * tanh(inout / cap).
void soft_cap(float cap, int64_t count,
              float* inout);  // [count] f32

// inout += x, with the `dim` values of x repeated for each row.
void add_row(const float* x,  // [dim] f32
             int64_t num_rows, int64_t dim,
             float* inout);  // [num_rows, dim] f32

// inout += x.
void add(const float* x,  // [count] f32
         int64_t count,
         float* inout);  // [count] f32

// Rounds to the nearest bf16, ties to even; NaN stays NaN.
void round_to_bf16(const float* x,  // [count] f32
                   int64_t count,
                   uint16_t* out);  // [count] bf16 bits

// Name of the instruction set in use, e.g. "AVX3_DL".
const char* simd_name();

}  // namespace rarefy::cpu
