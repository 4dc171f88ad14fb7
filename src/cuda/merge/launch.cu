// One warp per row; parts in ascending order, in f32 relative to the largest lse. Reads every part once: its floor is
// (num_parts + 1) * num_rows * (head_dim + 1) * 4 bytes over the memory bandwidth.
#include <cmath>

#include "cuda/merge/launch.h"

namespace rarefy::cuda {
namespace {

constexpr int kWarps = 4, kMaxEach = 8;  // head_dim up to 256: 8 dims a lane

__global__ void merge_kernel(MergeArgs args, int32_t head_dim) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= args.num_rows) return;
  float maximum = -INFINITY;
  for (int32_t part = 0; part < args.num_parts; ++part) maximum = fmaxf(maximum, args.part_lse[part * args.num_rows + row]);
  float sums[kMaxEach] = {};  // dims lane, lane + 32, ...
  float total = 0.0f;
  for (int32_t part = 0; part < args.num_parts; ++part) {
    const float lse = args.part_lse[part * args.num_rows + row];
    if (lse == -INFINITY) continue;
    const float weight = expf(lse - maximum);
    const float* out = args.part_out + (part * args.num_rows + row) * head_dim;  // [head_dim] f32
    total += weight;
#pragma unroll
    for (int i = 0; i < kMaxEach; ++i) {
      if (lane + i * 32 < head_dim) sums[i] = fmaf(weight, out[lane + i * 32], sums[i]);
    }
  }
  // Rows may be written over the first part: all of this row's reads are done, and no other warp reads it.
#pragma unroll
  for (int i = 0; i < kMaxEach; ++i) {
    if (lane + i * 32 < head_dim) args.out[row * head_dim + lane + i * 32] = total > 0.0f ? sums[i] / total : 0.0f;
  }
  __syncwarp();
  if (args.lse != nullptr && lane == 0) args.lse[row] = total > 0.0f ? maximum + logf(total) : -INFINITY;
}

}  // namespace

cudaError_t launch_merge(int32_t head_dim, const MergeArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return cudaSuccess;
  merge_kernel<<<static_cast<unsigned>((args.num_rows + kWarps - 1) / kWarps), 32 * kWarps, 0, stream>>>(args, head_dim);
  return cudaGetLastError();
}

}  // namespace rarefy::cuda
