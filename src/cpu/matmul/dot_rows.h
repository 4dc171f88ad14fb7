// Dot products of weight rows with activation rows: the matrix product for few activation rows, where the time is that of
// reading the weights once. Each of the products is summed in one fixed order, so a value depends neither on how many rows
// are computed together nor on the threads.
#pragma once

#include <cstdint>

namespace rarefy::cpu {

// Weight rows that the kernel reads side by side; parts that start at a multiple of it are fastest.
inline constexpr int64_t kDotRowsBlock = 8;

// y[m, n] = sum_k x[m, k] w[n, k] for n in [first_row, last_row); other elements of y are left alone. One thread.
struct DotRowsArgs {
  const void* weight = nullptr;  // [out_dim, in_dim] f32 or bf16; contiguous
  bool weight_is_bf16 = false;
  const float* x = nullptr;  // [num_rows, in_dim] f32; contiguous
  float* y = nullptr;        // [num_rows, out_dim] f32; contiguous
  int64_t num_rows = 0;
  int64_t in_dim = 0;
  int64_t out_dim = 0;
};
void dot_rows(const DotRowsArgs& args, int64_t first_row, int64_t last_row);

}  // namespace rarefy::cpu
