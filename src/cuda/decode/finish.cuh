// From the warps' running sums to results: the warps of a block combine, splits of a list merge in a fixed order, and the last
// block of a list writes out, lse and the certificates.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "cuda/decode/params.h"
#include "cuda/decode/stage.cuh"
#include "cuda/decode/traits.cuh"
#include "cuda/device/ptx.cuh"
#include "rarefy/core/dtype.h"

namespace rarefy::cuda {

template <typename T>
struct Running;

template <typename T>
struct alignas(16) Combine {
  static constexpr int kStride = T::kHeadDim + 4;  // the pad spreads slots over the banks
  float sums[T::kWarps][T::kSlots][kStride];
  float maximum[T::kWarps][T::kSlots], total[T::kWarps][T::kSlots], norms[T::kWarps][T::kSlots];
  int last;  // whether the block arrived last
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

// Partial results in the workspace: statistics and sums of a split's slots (columns, then their variances).
template <typename T>
struct PartRow {
  float* stats;  // [4] f32: maximum, total, norms
  float* sums;   // [head_dim] f32

  __device__ PartRow(const DecodeParams& p, const Place& place, int split, int slot) {
    const int slots = p.columns_per_block * (T::kCertificates ? 2 : 1);
    const int64_t row =
        (static_cast<int64_t>(place.list_row * p.num_column_blocks + place.column_block) * p.split_capacity + split) *
            slots +
        slot;
    stats = p.part_stats + row * 4;
    sums = p.part_sums + row * T::kHeadDim;
  }
};

template <typename T>
__device__ void store_part(const DecodeParams& p, const Place& place, int split, int column, const ColumnPart<T>& part) {
  constexpr int kEach = ColumnPart<T>::kEach;
  const int lane = threadIdx.x % 32;
  const PartRow<T> row(p, place, split, column);
  if (lane == 0) row.stats[0] = part.maximum, row.stats[1] = part.total;
#pragma unroll
  for (int i = 0; i < kEach; ++i) row.sums[lane * kEach + i] = part.sums[i];
  if constexpr (!T::kCertificates) return;
  const PartRow<T> variance(p, place, split, p.columns_per_block + column);
  if (lane == 0) variance.stats[1] = part.variance_total, variance.stats[2] = part.variance_norms;
#pragma unroll
  for (int i = 0; i < kEach; ++i) variance.sums[lane * kEach + i] = part.variance_sums[i];
}

// This lane's dims of kAtOnce rows at a time, so that their loads are under way together.
template <typename T>
struct PartRows {
  static constexpr int kEach = ColumnPart<T>::kEach, kAtOnce = 32 / kEach;
  float values[kAtOnce][kEach];

  // Parts first + stride * k for k = begin, begin + 1, ... below count.
  __device__ void load(const DecodeParams& p, const Place& place, int first, int stride, int begin, int count, int slot) {
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a) {
      if (begin + a >= count) break;
      const float* row =
          PartRow<T>(p, place, first + (begin + a) * stride, slot).sums + threadIdx.x % 32 * kEach;  // [kEach] f32
#pragma unroll
      for (int i = 0; i < kEach; i += 2) {
        const float2 two = __ldcg(reinterpret_cast<const float2*>(row + i));
        values[a][i] = two.x, values[a][i + 1] = two.y;
      }
    }
  }
  // sums += factor times row; lane k holds the factor of part k.
  __device__ void add_to(float (&sums)[kEach], float lane_factor, int begin, int count) const {
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a) {
      if (begin + a >= count) break;
      const float factor = __shfl_sync(0xffffffffu, lane_factor, begin + a);
#pragma unroll
      for (int i = 0; i < kEach; ++i) sums[i] = fmaf(factor, values[a][i], sums[i]);
    }
  }
};

// Merges `count` <= kMergeGroup parts of every column. Then either writes the results or stores them as part `first`.
template <typename T>
__device__ __forceinline__ void merge_parts(const DecodeParams& p, const Place& place, int kv_head, int first, int stride,
                                            int count, bool final) {
  const int lane = threadIdx.x % 32;
  for (int column = threadIdx.x / 32; column < place.num_columns; column += T::kWarps) {
    ColumnPart<T> part;
    PartRows<T> rows;
    float maximum = -INFINITY, total = 0.0f, variance_total = 0.0f, variance_norms = 0.0f;
    if (lane < count) {
      const PartRow<T> row(p, place, first + lane * stride, column);
      maximum = __ldcg(row.stats), total = __ldcg(row.stats + 1);
      if constexpr (T::kCertificates) {
        const PartRow<T> variance(p, place, first + lane * stride, p.columns_per_block + column);
        variance_total = __ldcg(variance.stats + 1), variance_norms = __ldcg(variance.stats + 2);
      }
    }
    rows.load(p, place, first, stride, 0, count, column);
    part.maximum = warp_max(maximum);
    const float factor = rescale(maximum, part.maximum), squared = factor * factor;
    part.total = warp_sum(factor * total);
    rows.add_to(part.sums, factor, 0, count);
    for (int begin = PartRows<T>::kAtOnce; begin < count; begin += PartRows<T>::kAtOnce) {
      rows.load(p, place, first, stride, begin, count, column);
      rows.add_to(part.sums, factor, begin, count);
    }
    if constexpr (T::kCertificates) {
      part.variance_total = warp_sum(squared * variance_total);
      part.variance_norms = warp_sum(squared * variance_norms);
      for (int begin = 0; begin < count; begin += PartRows<T>::kAtOnce) {
        rows.load(p, place, first, stride, begin, count, p.columns_per_block + column);
        rows.add_to(part.variance_sums, squared, begin, count);
      }
    }
    if (final) {
      write_column<T>(p, place, kv_head, column, part);
    } else {
      store_part<T>(p, place, first, column, part);
    }
  }
}

// True in the block that arrives last of `expected`; sees what the others wrote before they arrived. Leaves the counter at 0.
template <typename T>
__device__ bool arrive_last(int32_t* counter, int expected, Combine<T>& combine) {  // counter [1] i32
  __syncthreads();
  if (threadIdx.x == 0) {
    combine.last = arrive(counter) == expected - 1 ? 1 : 0;
    if (combine.last != 0) *counter = 0;
  }
  __syncthreads();
  return combine.last != 0;
}

template <typename T>
__device__ void finish_split(const DecodeParams& p, const Work& work, int split, Running<T>& run, Combine<T>& combine) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
#pragma unroll
  for (int n = 0; n < T::kColumnTiles; ++n) {
    const auto over_tokens = [](float value) {
      value += __shfl_xor_sync(0xffffffffu, value, 1);
      return value + __shfl_xor_sync(0xffffffffu, value, 2);
    };
    const float total = over_tokens(run.total[n]), norms = T::kCertificates ? over_tokens(run.norms[n]) : 0.0f;
    if (c == 0) {
      combine.maximum[warp][n * 8 + g] = run.maximum[n];
      combine.total[warp][n * 8 + g] = total;
      combine.norms[warp][n * 8 + g] = norms;
    }
#pragma unroll
    for (int tile = 0; tile < T::kDimTiles; ++tile) {
      constexpr int kWords = T::kValueElements / 2;
      const int dim = tile / kWords * 8 * T::kValueElements + g * T::kValueElements + tile % kWords * 2;
      float* even = &combine.sums[warp][n * 8 + 2 * c][dim];     // [2] f32
      float* odd = &combine.sums[warp][n * 8 + 2 * c + 1][dim];  // [2] f32
      *reinterpret_cast<float2*>(even) = {run.sums[tile][n][0], run.sums[tile][n][2]};
      *reinterpret_cast<float2*>(odd) = {run.sums[tile][n][1], run.sums[tile][n][3]};
    }
  }
  __syncthreads();

  constexpr float kUnscale = 1.0f / T::kWeightScale;
  constexpr int kEach = ColumnPart<T>::kEach;
  for (int column = warp; column < work.place.num_columns; column += T::kWarps) {
    const int variance = T::kColumns % T::kSlots + column;
    ColumnPart<T> part;
#pragma unroll
    for (int w = 0; w < T::kWarps; ++w) part.maximum = fmaxf(part.maximum, combine.maximum[w][column]);
#pragma unroll
    for (int w = 0; w < T::kWarps; ++w) {
      const float factor = rescale(combine.maximum[w][column], part.maximum) * kUnscale;
      part.total += factor * combine.total[w][column];
#pragma unroll
      for (int i = 0; i < kEach; ++i) part.sums[i] += factor * combine.sums[w][column][lane * kEach + i];
      if constexpr (T::kCertificates) {
        const float squared = factor * factor * T::kWeightScale;
        part.variance_total += squared * combine.total[w][variance];
        part.variance_norms += squared * combine.norms[w][variance];
#pragma unroll
        for (int i = 0; i < kEach; ++i) part.variance_sums[i] += squared * combine.sums[w][variance][lane * kEach + i];
      }
    }
    if (work.extent.num_splits == 1) {
      write_column<T>(p, work.place, work.kv_head, column, part);
    } else {
      store_part<T>(p, work.place, split, column, part);
    }
  }
  if (work.extent.num_splits == 1) return;

  const int group = split / kMergeGroup, num_groups = ceil_div(work.extent.num_splits, kMergeGroup);
  int32_t* counters = p.counters + (work.place.list_row * p.num_column_blocks + work.place.column_block) *
                                       kCountersPerList;  // [kCountersPerList] i32
  int first = group * kMergeGroup, stride = 1, count = min(kMergeGroup, work.extent.num_splits - group * kMergeGroup);
  if (!arrive_last<T>(counters + group, count, combine)) return;
  for (bool final = num_groups == 1;; final = true) {
    merge_parts<T>(p, work.place, work.kv_head, first, stride, count, final);
    if (final || !arrive_last<T>(counters + kCountersPerList - 1, num_groups, combine)) return;
    first = 0, stride = kMergeGroup, count = num_groups;
  }
}

}  // namespace rarefy::cuda
