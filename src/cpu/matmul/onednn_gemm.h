// Matrix products for many activation rows by oneDNN (2.6 and 3.x). Weights stay in their plain row-major layout: oneDNN's
// own blocked layout was 4 to 8 % faster at 256 rows (bf16, AVX-512), which does not pay for a second copy of the weights.
// oneDNN keeps its own bounded cache of primitives, so nothing is cached here.
#pragma once

#include <cstdint>

#include "core/aligned_buffer.h"
#include "rarefy/core/status.h"

namespace rarefy::cpu {

// Whether oneDNN multiplies bf16 with f32 sums on this CPU (AVX-512).
bool onednn_has_bf16();

struct OnednnGemmArgs {
  const void* weight = nullptr;  // [out_dim, in_dim] f32 or bf16; contiguous
  const void* x = nullptr;       // [num_rows, in_dim] f32 or bf16, as the weight; contiguous
  bool is_bf16 = false;
  float* y = nullptr;  // [num_rows, out_dim] f32; rows y_row_stride elements apart
  int64_t num_rows = 0;
  int64_t in_dim = 0;
  int64_t out_dim = 0;
  int64_t y_row_stride = 0;
};
Status onednn_gemm(const OnednnGemmArgs& args, AlignedBuffer& scratchpad);

}  // namespace rarefy::cpu
