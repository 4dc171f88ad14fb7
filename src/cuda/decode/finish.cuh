// From the warps' running sums to results: leaves fold into quads, in one warp or over several; quads of a list merge in a fixed
// order, and the last block of a list writes out, lse and the certificates.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "cuda/decode/attend.cuh"
#include "cuda/decode/params.h"
#include "cuda/decode/traits.cuh"
#include "cuda/device/ptx.cuh"
#include "rarefy/core/dtype.h"

namespace rarefy::cuda {

// What warps that share a quad put together: its leaves in ascending order, or the fold of the first two and the others.
template <typename T>
struct alignas(16) Combine {
  static constexpr int kStates = 6;                // two quads of three, or one of four
  static constexpr int kStride = T::kHeadDim + 4;  // the pad spreads slots over the banks
  float sums[kStates][T::kSlots][kStride];
  float maximum[kStates][T::kSlots], total[kStates][T::kSlots], norms[kStates][T::kSlots];
};

// Shared memory of a block; the warps' rings follow, p.num_stages stages each. Once all rows are read, the rings' memory holds what the
// warps combine, and then what the block merges.
template <typename T>
struct Shared {
  alignas(16) char queries[T::kSlots][T::kQueryStride];  // one row of q for each slot
  int last;                                              // whether the block arrived last

  static_assert(sizeof(Combine<T>) <= T::kWarps * T::kStages * sizeof(Stage<T>));
  static constexpr int bytes(int num_stages) {
    return static_cast<int>(sizeof(Shared) + T::kWarps * num_stages * sizeof(Stage<T>));
  }
  __device__ Stage<T>* ring(const DecodeParams& p, int warp) {  // [num_stages]
    return reinterpret_cast<Stage<T>*>(this + 1) + warp * p.num_stages;
  }
  __device__ Combine<T>& combine() { return *reinterpret_cast<Combine<T>*>(this + 1); }
};

// One column's result over some tokens, held by one warp: lane l has dims l * kEach .. + kEach - 1.
template <typename T>
struct ColumnPart {
  static constexpr int kEach = T::kHeadDim / 32;
  float maximum = -INFINITY;  // log2 units
  float total = 0.0f;         // sum of weights / 2^maximum
  float sums[kEach] = {};     // and of weight times value
  // With certificates, under the weights w = weight^2 (1 - pi) / 4^maximum:
  float variance_total = 0.0f, variance_norms = 0.0f;  // sum of w, of w |v|^2
  float variance_sums[kEach] = {};                     // sum of w v
};

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lanes));
  return value;
}

// 2^(from - to), 0 for an empty part.
__device__ inline float rescale(float from, float to) { return from == -INFINITY ? 0.0f : exp2_approximate(from - to); }

// How two results are brought to the larger of their maxima.
struct Factors {
  float before = 1.0f, after = 1.0f;

  Factors() = default;
  __device__ Factors(float before_maximum, float after_maximum) {
    const float maximum = fmaxf(before_maximum, after_maximum);
    before = rescale(before_maximum, maximum), after = rescale(after_maximum, maximum);
  }
  __device__ Factors squared() const {
    Factors result;
    result.before = before * before, result.after = after * after;
    return result;
  }
  // Rounds alike wherever it is compiled.
  __device__ void add(float& sum, float value) const { sum = fmaf(value, after, __fmul_rn(sum, before)); }
};

template <typename T>
__device__ void write_column(const DecodeParams& p, const Place& place, int kv_head, int column,
                             const ColumnPart<T>& part) {
  constexpr float kLn2 = 0.6931471805599453f, kLog2E = 1.4426950408889634f;
  constexpr int kEach = ColumnPart<T>::kEach;
  const int lane = threadIdx.x % 32;
  const float sink =
      p.sink_logits != nullptr ? p.sink_logits[place.head_of(p, column, place.query_of(p, column))] * kLog2E : -INFINITY;
  const float maximum = fmaxf(part.maximum, sink);
  const float factor = rescale(part.maximum, maximum);
  const float total = part.total * factor + rescale(sink, maximum);
  const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
  const float value_scale = p.value_scales != nullptr ? p.value_scales[kv_head] : 1.0f;
  const int64_t row = place.output_row(p, column);
  float out[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    out[i] = part.sums[i] * factor * inverse;
    const int64_t at = row * T::kHeadDim + lane * kEach + i;
    const float value = out[i] * value_scale;
    switch (static_cast<DType>(p.out_dtype)) {
      case DType::bf16: static_cast<__nv_bfloat16*>(p.out)[at] = __float2bfloat16_rn(value); break;
      case DType::f16: static_cast<__half*>(p.out)[at] = __float2half_rn(value); break;
      default: static_cast<float*>(p.out)[at] = value; break;
    }
  }
  if (p.lse != nullptr && lane == 0) p.lse[row] = total > 0.0f ? (maximum + log2f(total)) * kLn2 : -INFINITY;
  if constexpr (!T::kCertificates) return;
  // Relative to the same maximum; weights squared.
  const float scale = factor * factor * inverse * inverse;
  if (p.rel_std != nullptr && lane == 0) p.rel_std[row] = sqrtf(part.variance_total * scale);
  if (p.out_rel_std == nullptr) return;
  float norm = 0.0f, cross = 0.0f;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    norm = fmaf(out[i], out[i], norm);
    cross = fmaf(out[i], part.variance_sums[i], cross);
  }
  norm = warp_sum(norm);
  cross = warp_sum(cross);
  // sum w |v - out|^2; rounding can push a spread of nothing below 0.
  const float spread = fmaxf(0.0f, part.variance_norms - 2.0f * cross + norm * part.variance_total);
  if (lane == 0) p.out_rel_std[row] = spread > 0.0f ? sqrtf(spread * scale / norm) : 0.0f;
}

// Partial results in the workspace: statistics and sums of a quad's slots (columns, then their variances).
template <typename T>
struct PartRow {
  float* stats;  // [4] f32: maximum, total, norms
  float* sums;   // [head_dim] f32

  static __device__ int num_slots(const DecodeParams& p) { return p.columns_per_block * (T::kCertificates ? 2 : 1); }
  __device__ PartRow(const DecodeParams& p, const Place& place, int quad, int slot) {
    const int64_t row =
        (static_cast<int64_t>(place.list_row * p.num_column_blocks + place.column_block) * p.quad_capacity + quad) *
            num_slots(p) +
        slot;
    stats = p.part_stats + row * 4;
    sums = p.part_sums + row * T::kHeadDim;
  }
  // From the sums of one quad to those of the next, in f32.
  static __device__ int64_t stride(const DecodeParams& p) { return static_cast<int64_t>(num_slots(p)) * T::kHeadDim; }
};

template <typename T>
__device__ void store_part(const DecodeParams& p, const Place& place, int quad, int column, const ColumnPart<T>& part) {
  constexpr int kEach = ColumnPart<T>::kEach;
  const int lane = threadIdx.x % 32;
  const PartRow<T> row(p, place, quad, column);
  if (lane == 0) *reinterpret_cast<float4*>(row.stats) = {part.maximum, part.total, 0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kEach; ++i) row.sums[lane * kEach + i] = part.sums[i];
  if constexpr (!T::kCertificates) return;
  const PartRow<T> variance(p, place, quad, p.columns_per_block + column);
  if (lane == 0) *reinterpret_cast<float4*>(variance.stats) = {0.0f, part.variance_total, part.variance_norms, 0.0f};
#pragma unroll
  for (int i = 0; i < kEach; ++i) variance.sums[lane * kEach + i] = part.variance_sums[i];
}

// The sums of a slot's parts on their way to a warp's shared memory, up to kAtOnce at a time, and their sum in ascending order.
template <typename T>
struct PartRows {
  static constexpr int kEach = ColumnPart<T>::kEach, kPieces = T::kHeadDim / 4;  // of 16 bytes
  static constexpr int kFit = T::kStages * sizeof(Stage<T>) / (T::kHeadDim * 4), kAtOnce = kFit < 32 ? kFit / 16 * 16 : 32;
  static_assert(kAtOnce * T::kHeadDim * 4 <= T::kStages * sizeof(Stage<T>));

  static __device__ __forceinline__ void start(const DecodeParams& p, const Place& place, int begin, int end, int slot,
                                               uint32_t memory) {
    const float* from = PartRow<T>(p, place, begin, slot).sums;  // [quads, stride]; f32
    const int64_t stride = PartRow<T>::stride(p);
    const int pieces = min(kAtOnce, end - begin) * kPieces;
#pragma unroll 4
    for (int i = threadIdx.x % 32; i < pieces; i += 32) {
      copy_16(memory + i * 16, from + i / kPieces * stride + i % kPieces * 4);
    }
    commit_copies();
  }
  // Lane k has the factors of parts k and k + 32.
  static __device__ __forceinline__ void add(int begin, int end, const float (&factors)[2], float (&sums)[kEach],
                                             const float* memory) {  // memory [kAtOnce, head_dim] f32
    wait_for_copies<0>();
    __syncwarp();
    const int count = min(kAtOnce, end - begin);
#pragma unroll 2
    for (int a = 0; a < count; ++a) {
      const float factor = __shfl_sync(0xffffffffu, begin < 32 ? factors[0] : factors[1], (begin + a) % 32);
      const float* row = memory + a * T::kHeadDim + threadIdx.x % 32 * kEach;  // [kEach] f32
#pragma unroll
      for (int i = 0; i < kEach; ++i) sums[i] = fmaf(factor, row[i], sums[i]);
    }
    __syncwarp();
  }
};

// Merges the parts of a column. The warp's ring is free.
template <typename T>
__device__ __forceinline__ ColumnPart<T> merge_parts(const DecodeParams& p, const Place& place, int num_quads, int column,
                                                     const Stage<T>* ring) {  // ring [num_stages]
  using Parts = PartRows<T>;
  const uint32_t address = shared_address(ring);
  const float* memory = reinterpret_cast<const float*>(ring);  // [kAtOnce, head_dim] f32
  const int lane = threadIdx.x % 32;
  Parts::start(p, place, 0, num_quads, column, address);
  float4 stats[2], variance[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    stats[h] = {-INFINITY, 0.0f, 0.0f, 0.0f};
    const int quad = lane + 32 * h;
    if (quad >= num_quads) continue;
    stats[h] = __ldcg(reinterpret_cast<const float4*>(PartRow<T>(p, place, quad, column).stats));
    if constexpr (T::kCertificates) {
      variance[h] = __ldcg(reinterpret_cast<const float4*>(PartRow<T>(p, place, quad, p.columns_per_block + column).stats));
    }
  }
  ColumnPart<T> merged;
  merged.maximum = warp_max(fmaxf(stats[0].x, stats[1].x));
  float factors[2] = {rescale(stats[0].x, merged.maximum), rescale(stats[1].x, merged.maximum)};
  merged.total = warp_sum(factors[0] * stats[0].y + factors[1] * stats[1].y);
  const auto add_all = [&](int slot, float(&sums)[Parts::kEach], bool started) {
#pragma unroll 1
    for (int begin = 0; begin < num_quads; begin += Parts::kAtOnce) {
      if (!started) Parts::start(p, place, begin, num_quads, slot, address);
      Parts::add(begin, num_quads, factors, sums, memory);
      started = false;
    }
  };
  add_all(column, merged.sums, true);
  if constexpr (T::kCertificates) {
    factors[0] *= factors[0], factors[1] *= factors[1];
    merged.variance_total = warp_sum(factors[0] * variance[0].y + factors[1] * variance[1].y);
    merged.variance_norms = warp_sum(factors[0] * variance[0].z + factors[1] * variance[1].z);
    add_all(p.columns_per_block + column, merged.variance_sums, false);
  }
  return merged;
}

// Adds a leaf, its lanes added, to those before it. An empty side leaves the other's bits as they are.
template <typename T>
__device__ __forceinline__ void fold(Running<T>& quad, const Running<T>& leaf) {
#pragma unroll
  for (int n = 0; n < T::kColumnTiles; ++n) {
    Factors factors[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      factors[e] = Factors(quad.maximum[n][e], leaf.maximum[n][e]);
      if (holds_variance<T>(n)) factors[e] = factors[e].squared();
      quad.maximum[n][e] = fmaxf(quad.maximum[n][e], leaf.maximum[n][e]);
      factors[e].add(quad.total[n][e], leaf.total[n][e]);
#pragma unroll
      for (int tile = 0; tile < T::kDimTiles; ++tile) {
        factors[e].add(quad.sums[tile][n][e], leaf.sums[tile][n][e]);
        factors[e].add(quad.sums[tile][n][e + 2], leaf.sums[tile][n][e + 2]);
      }
    }
    if constexpr (T::kCertificates) {
      const int g = threadIdx.x % 32 / 4;  // the norms' slot
      const auto of_slot = [&](float even, float odd) {
        even = __shfl_sync(0xffffffffu, even, g / 2), odd = __shfl_sync(0xffffffffu, odd, g / 2);
        return g % 2 == 0 ? even : odd;
      };
      Factors norms;
      norms.before = of_slot(factors[0].before, factors[1].before),
      norms.after = of_slot(factors[0].after, factors[1].after);
      norms.add(quad.norms[n], leaf.norms[n]);
    }
  }
}

// Calls store(n, e, slot, g, norms) for the lane's two slots n * 8 + 2c + e of each tile, where they are in use.
template <typename T, typename Store>
__device__ __forceinline__ void for_each_slot(const Running<T>& run, int num_columns, Store&& store) {
  const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < T::kColumnTiles; ++n) {
    // The norms of slots n * 8 + 2c + (0, 1), which other lanes have.
    float norms[2] = {};
    if constexpr (T::kCertificates) {
#pragma unroll
      for (int e = 0; e < 2; ++e) norms[e] = __shfl_sync(0xffffffffu, run.norms[n], (2 * c + e) * 4);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int slot = n * 8 + 2 * c + e;
      if (slot % T::kColumns < num_columns) store(n, e, slot, g, norms[e]);
    }
  }
}

// A lane's sums of a slot as a row of head_dim.
template <typename T>
__device__ __forceinline__ void store_sums(const Running<T>& run, int n, int e, float scale,
                                           float* row) {  // row [head_dim] f32
  const int g = threadIdx.x % 32 / 4;
#pragma unroll
  for (int tile = 0; tile < T::kDimTiles; ++tile) {
    if constexpr (T::kKvBytes == 2) {
      row[tile * 16 + g] = run.sums[tile][n][e] * scale, row[tile * 16 + g + 8] = run.sums[tile][n][e + 2] * scale;
    } else {
      *reinterpret_cast<float2*>(row + tile * 16 + 2 * g) = {run.sums[tile][n][e] * scale,
                                                             run.sums[tile][n][e + 2] * scale};
    }
  }
}

// Puts leaves, or their fold, into shared memory, for warps that share a quad.
template <typename T>
__device__ __forceinline__ void store_state(const Running<T>& run, int num_columns, Combine<T>& combine, int state) {
  for_each_slot<T>(run, num_columns, [&](int n, int e, int slot, int g, float norms) {
    store_sums<T>(run, n, e, 1.0f, combine.sums[state][slot]);
    if (g == 0) {
      combine.maximum[state][slot] = run.maximum[n][e], combine.total[state][slot] = run.total[n][e];
      combine.norms[state][slot] = norms;
    }
  });
}

// Folds a column's states: what fold() does in registers.
template <typename T>
__device__ __forceinline__ ColumnPart<T> fold_states(const Combine<T>& combine, int first, int count, int column) {
  constexpr float kUnscale = 1.0f / T::kWeightScale;
  constexpr int kEach = ColumnPart<T>::kEach;
  const int lane = threadIdx.x % 32, variance = T::kColumns % T::kSlots + column;
  ColumnPart<T> part;
#pragma unroll
  for (int i = 0; i < kQuadLeaves; ++i) {
    if (i >= count) break;
    const int state = first + i;
    const Factors factors(part.maximum, combine.maximum[state][column]);
    part.maximum = fmaxf(part.maximum, combine.maximum[state][column]);
    factors.add(part.total, combine.total[state][column]);
#pragma unroll
    for (int j = 0; j < kEach; ++j) factors.add(part.sums[j], combine.sums[state][column][lane * kEach + j]);
    if constexpr (T::kCertificates) {
      const Factors squared = factors.squared();
      squared.add(part.variance_total, combine.total[state][variance]);
      squared.add(part.variance_norms, combine.norms[state][variance]);
#pragma unroll
      for (int j = 0; j < kEach; ++j) squared.add(part.variance_sums[j], combine.sums[state][variance][lane * kEach + j]);
    }
  }
  part.total *= kUnscale, part.variance_total *= kUnscale, part.variance_norms *= kUnscale;
#pragma unroll
  for (int i = 0; i < kEach; ++i) part.sums[i] *= kUnscale, part.variance_sums[i] *= kUnscale;
  return part;
}

// Stores the part of a quad that one warp has: what store_part does for one that several share.
template <typename T>
__device__ __forceinline__ void store_quad(const DecodeParams& p, const Place& place, int quad, const Running<T>& run) {
  constexpr float kUnscale = 1.0f / T::kWeightScale;
  for_each_slot<T>(run, place.num_columns, [&](int n, int e, int slot, int g, float norms) {
    const bool variance = slot >= T::kColumns;
    const PartRow<T> row(p, place, quad, variance ? p.columns_per_block + slot - T::kColumns : slot);
    store_sums<T>(run, n, e, kUnscale, row.sums);
    if (g != 0) return;
    *reinterpret_cast<float4*>(row.stats) = {variance ? 0.0f : run.maximum[n][e], run.total[n][e] * kUnscale,
                                             variance ? norms * kUnscale : 0.0f, 0.0f};
  });
}

// What the warps of a block have when all rows are read: their quad's leaves, folded as far as they are the first; the last apart from
// them if it is a second warp of two. Writes the results of a list of one quad. Else stores parts, and the block that is last merges all.
template <typename T>
__device__ __forceinline__ void finish(const DecodeParams& p, const Work& work, int num_quads, const Shares& shares,
                                       const Running<T>& folded, const Running<T>& leaf, Shared<T>& shared) {
  const int warp = threadIdx.x / 32;
  const Place& place = work.place;
  if (shares.warps_per_quad > 1) {
    const bool two = shares.warps_per_quad == 2;
    __syncthreads();  // all rows are read
    store_state<T>(folded, place.num_columns, shared.combine(), two ? warp / 2 * 3 + warp % 2 : warp);
    if (two && warp % 2 == 1) store_state<T>(leaf, place.num_columns, shared.combine(), warp / 2 * 3 + 2);
    __syncthreads();
    const int quads = two ? 2 : 1;
    for (int task = warp; task < quads * place.num_columns; task += T::kWarps) {
      const int which = task >= place.num_columns ? 1 : 0, column = task - which * place.num_columns;
      const int quad = blockIdx.x * quads + which;
      if (quad >= num_quads) break;
      const ColumnPart<T> part = fold_states<T>(shared.combine(), which * 3, two ? 3 : 4, column);
      if (num_quads == 1) {
        write_column<T>(p, place, work.kv_head, column, part);
      } else {
        store_part<T>(p, place, quad, column, part);
      }
    }
  }
  if (num_quads == 1) return;
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* counter = p.counters + place.list_row * p.num_column_blocks + place.column_block;  // [1] i32
    shared.last = arrive(counter) == shares.blocks - 1 ? 1 : 0;
    if (shared.last != 0) *counter = 0;  // for the next run
  }
  __syncthreads();
  if (shared.last == 0) return;
  for (int column = warp; column < place.num_columns; column += T::kWarps) {
    write_column<T>(p, place, work.kv_head, column, merge_parts<T>(p, place, num_quads, column, shared.ring(p, warp)));
  }
}

}  // namespace rarefy::cuda
