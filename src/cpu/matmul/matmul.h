// Matmul: one linear layer, y = x W^T (+ bias), with its weights prepared once.
//
// Several weight matrices with the same input may be stacked (q, k and v; gate and up), so that one call reads the input once.
// Few rows go to a SIMD kernel that streams the weights (decode), many rows to oneDNN (prefill). With bf16 weights the sums
// are f32; activations are rounded to bf16 only on the oneDNN path. A CPU without bf16 products multiplies in f32 there.
//
// Immutable after make(); run() may be called from several threads with different scratch. Move-only; owns its weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/aligned_buffer.h"
#include "rarefy/core/dtype.h"
#include "rarefy/core/status.h"

namespace rarefy::cpu {

// Whether many-row products with bf16 weights are fast here (oneDNN on AVX-512).
bool has_fast_bf16_matmul();

// A tensor of a checkpoint as it lies in the file.
struct WeightPart {
  const void* data = nullptr;  // [rows, in_dim] dtype; contiguous, any alignment
  DType dtype = DType::bf16;   // f32, f16, bf16; f8_e4m3 with scales
  int64_t rows = 0;
  // Of fp8: the weights of each block of an even grid are multiplied by its scale.
  const float* scales = nullptr;  // [scale_rows, scale_columns] f32; nullable unless fp8
  int64_t scale_rows = 1;         // divides rows
  int64_t scale_columns = 1;      // divides in_dim
  // Called once the part has been converted and will not be read again; nullable.
  void (*done)(const void* data, std::size_t bytes) = nullptr;  // data: [bytes] bytes
};

class MatmulScratch {
 private:
  friend class Matmul;
  AlignedBuffer x_bf16_;      // [num_rows, in_dim] bf16
  AlignedBuffer weight_f32_;  // [panel_rows, in_dim] f32
  AlignedBuffer scratchpad_;  // what oneDNN asks for
};

class Matmul {
 public:
  // Up to this many rows the streaming kernel is used. Measured on two Zen 4 cores (docs/kernels/matmul.md).
  static constexpr int64_t kMaxStreamedRows = 8;

  // Converts the parts to `weight_dtype` (f32 or bf16), one under the other.
  static Expected<Matmul> make(std::span<const WeightPart> parts, int64_t in_dim, DType weight_dtype,
                               std::vector<float> bias = {});  // [out_dim] f32; empty = none

  Matmul() = default;  // empty; in_dim() == 0

  Status run(const float* x,  // [num_rows, in_dim] f32
             int64_t num_rows, MatmulScratch& scratch,
             float* y) const;  // [num_rows, out_dim] f32

  // One row of the weights as f32: an embedding. Pre: 0 <= row < out_dim().
  void read_row(int64_t row,
                float* out) const;  // [in_dim] f32

  int64_t in_dim() const { return in_dim_; }
  int64_t out_dim() const { return out_dim_; }
  DType weight_dtype() const { return weight_dtype_; }
  int64_t weight_bytes() const;  // bias included

 private:
  void run_streamed(const float* x, int64_t num_rows, float* y) const;
  Status run_many(const float* x, int64_t num_rows, MatmulScratch& scratch, float* y) const;

  AlignedBuffer weight_;     // [out_dim, in_dim] weight_dtype
  std::vector<float> bias_;  // [out_dim] f32; empty = none
  int64_t in_dim_ = 0;
  int64_t out_dim_ = 0;
  DType weight_dtype_ = DType::f32;
};

// Copies `count` elements of f32, f16 or bf16 (any alignment) as f32 or bf16.
Status convert_elements(const void* from,  // [count] from_dtype
                        DType from_dtype, int64_t count, DType to_dtype,
                        void* to);  // [count] to_dtype

}  // namespace rarefy::cpu
