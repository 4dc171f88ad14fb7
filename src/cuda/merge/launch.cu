// Parts are merged in f32 relative to the largest lse of their row. Part p goes into sum p % kChains, ascending, and the sums are
// added up in order: as many loads are under way as there are sums, and the sums of a row may lie in one warp (many rows) or in
// the warps of a block (few rows) with the same bits. kChains depends on head_dim alone (4 above 128, so that sums fit the
// registers, 8 otherwise). Reads every part once: the floor is (num_parts + 1) * num_rows * (head_dim + 1) * 4 bytes over the
// memory bandwidth.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cuda/merge/launch.h"

namespace rarefy::cuda {
namespace {

constexpr int kWarp = 32, kThreads = 128;
// A block for each row up to so many rows (H200: 64 parts of head_dim 128 took 13.1 instead of 14.2 us with 1,024 rows, 23.4 instead of
// 19.6 with 2,048; 8 parts 2.3 and 2.4 with 256, 5.6 and 4.0 with 1,024).
constexpr int kFewRows = 1024, kFewRowsPerPart = 32;

// A lane's share of a row, a vector at a time.
__device__ void add_scaled(float& sum, float weight, float value) { sum = fmaf(weight, value, sum); }
__device__ void add_scaled(float4& sum, float weight, float4 value) {
  sum = {fmaf(weight, value.x, sum.x), fmaf(weight, value.y, sum.y), fmaf(weight, value.z, sum.z),
         fmaf(weight, value.w, sum.w)};
}
__device__ float over(float sum, float total) { return total > 0.0f ? sum / total : 0.0f; }
__device__ float4 over(float4 sum, float total) {
  return {over(sum.x, total), over(sum.y, total), over(sum.z, total), over(sum.w, total)};
}

// The lanes that share a row, and what they share.
template <typename Vector, int kLanes>
struct Row {
  const MergeArgs& args;
  int64_t row;
  int32_t num_vectors;  // of a row
  int lane = static_cast<int>(threadIdx.x) % kLanes;
  unsigned mask = kLanes == kWarp ? 0xffffffffu : 0xffffu << (threadIdx.x & 16u);

  __device__ bool has(int vector) const { return lane + vector * kLanes < num_vectors; }
  __device__ Vector load(int32_t part, int vector) const {
    const auto* rows = reinterpret_cast<const Vector*>(args.part_out);  // [num_parts, num_rows, num_vectors]
    return rows[(part * args.num_rows + row) * num_vectors + lane + vector * kLanes];
  }
  __device__ float broadcast(float value, int from) const { return __shfl_sync(mask, value, from, kLanes); }
  __device__ float lse(int32_t part) const {
    return part < args.num_parts ? args.part_lse[part * args.num_rows + row] : -INFINITY;
  }
  __device__ float maximum() const {
    float largest = -INFINITY;
    for (int32_t part = lane; part < args.num_parts; part += kLanes) largest = fmaxf(largest, lse(part));
    for (int other = kLanes / 2; other > 0; other /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(mask, largest, other, kLanes));
    return largest;
  }
  // 0 for a part without tokens: its row may hold anything.
  __device__ float weight(int32_t part, float maximum) const {
    const float value = lse(part);
    return value == -INFINITY ? 0.0f : expf(value - maximum);
  }
  // Asks for parts first, first + step, ... of this row. Without a branch between them where there are all of them.
  template <int kParts, int kVectors>
  __device__ void load_parts(int32_t first, int step, Vector (&values)[kParts][kVectors]) const {
    const auto load_part = [&](int i) {
#pragma unroll
      for (int vector = 0; vector < kVectors; ++vector) {
        if (has(vector)) values[i][vector] = load(first + i * step, vector);
      }
    };
    if (first + (kParts - 1) * step < args.num_parts) {
#pragma unroll
      for (int i = 0; i < kParts; ++i) load_part(i);
    } else {
#pragma unroll
      for (int i = 0; i < kParts - 1; ++i) {
        if (first + i * step >= args.num_parts) break;
        load_part(i);
      }
    }
  }
  // Rows may be written over the first part: whoever stores has waited for all that read this row.
  template <int kVectors>
  __device__ void store(const Vector (&sums)[kVectors], float total, float maximum) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (has(i)) reinterpret_cast<Vector*>(args.out)[row * num_vectors + lane + i * kLanes] = over(sums[i], total);
    }
    if (args.lse != nullptr && lane == 0) args.lse[row] = total > 0.0f ? maximum + logf(total) : -INFINITY;
  }
};

// kLanes lanes for a row.
template <typename Vector, int kLanes, int kVectors, int kChains>
__global__ void __launch_bounds__(kThreads) merge_many(MergeArgs args, int32_t num_vectors) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  if (number >= args.num_rows) return;
  const Row<Vector, kLanes> row{args, number, num_vectors};
  Vector sums[kChains][kVectors] = {};
  float total = 0.0f;  // lane c: of sum c
  Vector values[kChains][kVectors];
  row.load_parts(0, 1, values);  // on their way while the largest lse is found
  const float maximum = row.maximum();
  for (int32_t first = 0;;) {
    const float weights = row.lane < kChains ? row.weight(first + row.lane, maximum) : 0.0f;
    total += weights;
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) {
      const float weight = row.broadcast(weights, chain);
      if (weight == 0.0f) continue;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) add_scaled(sums[chain][i], weight, values[chain][i]);
    }
    first += kChains;
    if (first >= args.num_parts) break;
    row.load_parts(first, 1, values);
  }
  float all = row.broadcast(total, 0);
#pragma unroll
  for (int chain = 1; chain < kChains; ++chain) {
    all += row.broadcast(total, chain);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) add_scaled(sums[0][i], 1.0f, sums[chain][i]);
  }
  row.store(sums[0], all, maximum);
}

// A block for a row, a warp for a sum.
template <typename Vector, int kVectors, int kChains>
__global__ void __launch_bounds__(kChains* kWarp) merge_few(MergeArgs args, int32_t num_vectors) {
  constexpr int kLoads = 8 / kVectors;
  __shared__ Vector parts[kChains][kVectors][kWarp];
  __shared__ float totals[kChains];
  const Row<Vector, kWarp> row{args, blockIdx.x, num_vectors};
  const int chain = static_cast<int>(threadIdx.x) / kWarp;
  Vector sums[kVectors] = {};
  float total = 0.0f;
  Vector values[kLoads][kVectors];
  row.load_parts(chain, kChains, values);
  const float maximum = row.maximum();
  for (int32_t first = chain;;) {
    const float weights = row.lane < kLoads ? row.weight(first + row.lane * kChains, maximum) : 0.0f;
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const float weight = row.broadcast(weights, load);
      total += weight;
      if (weight == 0.0f) continue;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) add_scaled(sums[i], weight, values[load][i]);
    }
    first += kLoads * kChains;
    if (first >= args.num_parts) break;
    row.load_parts(first, kChains, values);
  }
#pragma unroll
  for (int i = 0; i < kVectors; ++i) parts[chain][i][row.lane] = sums[i];
  if (row.lane == 0) totals[chain] = total;
  __syncthreads();
  if (chain > 0) return;
  for (int other = 1; other < kChains; ++other) {
    total += totals[other];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) add_scaled(sums[i], 1.0f, parts[other][i][row.lane]);
  }
  row.store(sums, total, maximum);
}

template <typename Vector, int kLanes, int kVectors, int kChains>
void launch_many(const MergeArgs& args, int32_t num_vectors, cudaStream_t stream) {
  constexpr int kRows = kThreads / kLanes;
  const auto blocks = static_cast<unsigned>((args.num_rows + kRows - 1) / kRows);
  merge_many<Vector, kLanes, kVectors, kChains><<<blocks, kThreads, 0, stream>>>(args, num_vectors);
}

bool is_aligned(const float* rows) {  // [rows, head_dim] f32
  return reinterpret_cast<uintptr_t>(rows) % sizeof(float4) == 0;
}

// Rows of up to 4 * kLanes * kVectors dims.
template <int kLanes, int kVectors, int kChains>
void launch(int32_t head_dim, const MergeArgs& args, cudaStream_t stream) {
  if (head_dim % 4 != 0 || !is_aligned(args.part_out) || !is_aligned(args.out)) {
    return launch_many<float, kWarp, 4 * kLanes * kVectors / kWarp, kChains>(args, head_dim, stream);
  }
  const int32_t num_vectors = head_dim / 4;
  if (args.num_rows <= std::min<int64_t>(kFewRows, int64_t{kFewRowsPerPart} * args.num_parts)) {
    merge_few<float4, kVectors, kChains>
        <<<static_cast<unsigned>(args.num_rows), kChains * kWarp, 0, stream>>>(args, num_vectors);
  } else if (args.num_parts <= 2) {  // with fewer sums more warps fit an SM; those left out would have added zeros
    launch_many<float4, kLanes, kVectors, 2>(args, num_vectors, stream);
  } else if (args.num_parts <= 4) {
    launch_many<float4, kLanes, kVectors, 4>(args, num_vectors, stream);
  } else {
    launch_many<float4, kLanes, kVectors, kChains>(args, num_vectors, stream);
  }
}

}  // namespace

cudaError_t launch_merge(int32_t head_dim, const MergeArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return cudaSuccess;
  const auto run = head_dim <= 64 ? launch<16, 1, 8> : head_dim <= 128 ? launch<32, 1, 8> : launch<32, 2, 4>;
  run(head_dim, args, stream);
  return cudaGetLastError();
}

}  // namespace rarefy::cuda
