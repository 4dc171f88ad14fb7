// From the warps' running sums to results: leaves fold into pairs, in one warp or over two; pairs of a list merge in a fixed
// order, and the last block of a list writes out, lse and the certificates.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/decode/attend.cuh"
#include "cuda/decode/params.h"
#include "cuda/decode/traits.cuh"
#include "cuda/device/ptx.cuh"
#include "rarefy/core/dtype.h"

namespace rarefy::cuda {

// A leaf in shared memory, for warps that share a pair.
template <typename T>
struct alignas(16) Leaf {
  static constexpr int kStride = T::kHeadDim + 4;  // the pad spreads slots over the banks
  float sums[T::kSlots][kStride];
  float maximum[T::kSlots], total[T::kSlots], norms[T::kSlots];
};

// Shared memory of a block; the warps' rings follow, kStages stages each. Once a warp has read its rows, its ring's memory holds
// its leaf.
template <typename T>
struct alignas(128) Shared {
  QueryRows<T> queries;
  int last;  // whether the block arrived last

  static_assert(sizeof(Leaf<T>) <= T::kStages * sizeof(Stage<T>));
  static constexpr int bytes(int num_warps) {
    return static_cast<int>(sizeof(Shared) + num_warps * T::kStages * sizeof(Stage<T>));
  }
  __device__ Stage<T>* ring(int warp) {  // [kStages]
    return reinterpret_cast<Stage<T>*>(this + 1) + warp * T::kStages;
  }
  __device__ Leaf<T>& leaf(int warp) { return *reinterpret_cast<Leaf<T>*>(ring(warp)); }
};

// A lane's dims of a row, read and written at once.
template <int kEach>
struct alignas(kEach * 4 < 16 ? kEach * 4 : 16) Floats {
  float at[kEach];
};

// One column's result over some tokens, held by one warp: lane l has dims l * kEach .. + kEach - 1.
template <typename T>
struct ColumnPart {
  static constexpr int kEach = T::kHeadDim / 32;
  float maximum = -INFINITY;  // log2 units
  float total = 0.0f;         // sum of weights / 2^maximum
  Floats<kEach> sums = {};    // and of weight times value
  // With certificates, under the weights w = weight^2 (1 - pi) / 4^maximum:
  float variance_total = 0.0f, variance_norms = 0.0f;  // sum of w, of w |v|^2
  Floats<kEach> variance_sums = {};                    // sum of w v
};

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}
// Of no NaN: by integers in the order of floats, for which there is one instruction.
__device__ inline float warp_max(float value) {
  const auto in_order = [](int bits) { return bits ^ (bits >> 31 & INT32_MAX); };
  return __int_as_float(in_order(__reduce_max_sync(0xffffffffu, in_order(__float_as_int(value)))));
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
  __device__ float fold(float first, float second) const { return fmaf(second, after, __fmul_rn(first, before)); }
};

// A lane's dims of a row of the output, rounded to its type.
template <int kEach>
__device__ __forceinline__ void store_row(const DecodeParams& p, int64_t at, const Floats<kEach>& values) {
  struct alignas(kEach * 2) Halves {
    uint32_t at[kEach / 2];
  };
  const auto store_halves = [&](auto pack) {
    Halves halves;
#pragma unroll
    for (int i = 0; i < kEach / 2; ++i) halves.at[i] = pack(values.at[2 * i], values.at[2 * i + 1]);
    *reinterpret_cast<Halves*>(static_cast<uint16_t*>(p.out) + at) = halves;
  };
  switch (static_cast<DType>(p.out_dtype)) {
    case DType::bf16: return store_halves([](float low, float high) { return pack2<true>(low, high); });
    case DType::f16: return store_halves([](float low, float high) { return pack2<false>(low, high); });
    default: break;
  }
  *reinterpret_cast<Floats<kEach>*>(static_cast<float*>(p.out) + at) = values;
}

template <typename T>
__device__ void write_column(const DecodeParams& p, const Place& place, int column, const ColumnPart<T>& part) {
  constexpr float kLn2 = 0.6931471805599453f, kLog2E = 1.4426950408889634f;
  constexpr int kEach = ColumnPart<T>::kEach;
  const int lane = threadIdx.x % 32;
  const float sink =
      p.sink_logits != nullptr ? p.sink_logits[place.head_of(p, column, place.query_of(p, column))] * kLog2E : -INFINITY;
  const float maximum = fmaxf(part.maximum, sink);
  const float factor = rescale(part.maximum, maximum);
  const float total = part.total * factor + rescale(sink, maximum);
  const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
  const float value_scale = p.value_scales != nullptr ? p.value_scales[place.kv_head(p)] : 1.0f;
  const int64_t row = place.output_row(p, column);
  float out[kEach];
  Floats<kEach> scaled;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    out[i] = part.sums.at[i] * factor * inverse;
    scaled.at[i] = out[i] * value_scale;
  }
  store_row<kEach>(p, row * T::kHeadDim + lane * kEach, scaled);
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
    cross = fmaf(out[i], part.variance_sums.at[i], cross);
  }
  norm = warp_sum(norm);
  cross = warp_sum(cross);
  // sum w |v - out|^2; rounding can push a spread of nothing below 0.
  const float spread = fmaxf(0.0f, part.variance_norms - 2.0f * cross + norm * part.variance_total);
  if (lane == 0) p.out_rel_std[row] = spread > 0.0f ? sqrtf(spread * scale / norm) : 0.0f;
}

// Partial results: statistics and sums of a pair's slot (columns, then their variances). The pairs of a slot are neighbours. They lie in the
// workspace, or in the shared memory of the block that merges the column: one of a cluster, or the list's only one. Apart at compile time, so that
// the workspace is read and written as device memory and not through addresses that could be either.
template <typename T, bool kInShared>
struct PartRow {
  static constexpr int kKinds = T::kCertificates ? 2 : 1;  // rows of a column and pair
  static constexpr int kFloats = 4 + T::kHeadDim;          // of a row
  float* stats;                                            // [4] f32: maximum, total, norms
  float* sums;                                             // [head_dim] f32

  __device__ __forceinline__ PartRow(const DecodeParams& p, const Work& work, int pair, int slot) {
    if constexpr (kInShared) {
      const int kind = slot >= p.columns_per_block ? 1 : 0, column = slot - kind * p.columns_per_block;
      const int at = (column >> p.parts_column_bits) * kKinds + kind, rank = column & ((1 << p.parts_column_bits) - 1);
      // [columns that a block merges, kinds, parts_pairs, 4 + head_dim] f32; statistics of all pairs before the sums
      float* parts = reinterpret_cast<float*>(block_memory() + p.parts_at);
      float* own = parts + at * p.parts_pairs * kFloats;  // this block's
      float* first = gridDim.x == 1 ? own : in_block(own, rank);
      stats = first + pair * 4;
      sums = first + p.parts_pairs * 4 + pair * T::kHeadDim;
    } else {
      const int list = work.place.list_row(p) * p.num_column_blocks + work.place.column_block;
      const int64_t row = static_cast<int64_t>(list * p.columns_per_block * kKinds + slot) * p.pair_capacity + pair;
      stats = p.part_stats + row * 4;
      sums = p.part_sums + row * T::kHeadDim;
    }
  }
};

// Calls function<work.in_shared>().
template <typename Function>
__device__ __forceinline__ void where_parts_are(const Work& work, Function&& function) {
  if (work.in_shared) {
    function.template operator()<true>();
  } else {
    function.template operator()<false>();
  }
}

// Where a slot's row is among those of a block: columns, then their variances.
template <typename T>
__device__ __forceinline__ int part_slot(const DecodeParams& p, int slot) {
  return slot < T::kColumns ? slot : p.columns_per_block + slot - T::kColumns;
}

template <typename T, bool kInShared>
__device__ void store_part(const DecodeParams& p, const Work& work, int pair, int column, const ColumnPart<T>& part) {
  constexpr int kEach = ColumnPart<T>::kEach;
  const int lane = threadIdx.x % 32;
  const PartRow<T, kInShared> row(p, work, pair, column);
  if (lane == 0) *reinterpret_cast<float4*>(row.stats) = {part.maximum, part.total, 0.0f, 0.0f};
  *reinterpret_cast<Floats<kEach>*>(row.sums + lane * kEach) = part.sums;
  if constexpr (!T::kCertificates) return;
  const PartRow<T, kInShared> variance(p, work, pair, p.columns_per_block + column);
  if (lane == 0) *reinterpret_cast<float4*>(variance.stats) = {0.0f, part.variance_total, part.variance_norms, 0.0f};
  *reinterpret_cast<Floats<kEach>*>(variance.sums + lane * kEach) = part.variance_sums;
}

// The sums of a slot's parts, up to kAtOnce of them at a time, and their weighted sum in ascending order.
template <typename T>
struct PartRows {
  static constexpr int kEach = ColumnPart<T>::kEach, kAtOnce = kEach > 4 ? 8 : 16;
  Floats<kEach> rows[kAtOnce];

  __device__ __forceinline__ void load(const float* from, int count) {  // from [count, head_dim] f32
    from += threadIdx.x % 32 * kEach;
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a) {
      rows[a] = {};
      if (a < count) rows[a] = *reinterpret_cast<const Floats<kEach>*>(from + a * T::kHeadDim);
    }
  }
  // Lane k has the factors of parts k and k + 32, 0 where there is none.
  __device__ __forceinline__ void add(int begin, const float (&factors)[2], Floats<kEach>& sums) const {
    const float near = begin < 32 ? factors[0] : factors[1];
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a) {
      const float factor = __shfl_sync(0xffffffffu, near, begin % 32 + a);
#pragma unroll
      for (int i = 0; i < kEach; ++i) sums.at[i] = fmaf(factor, rows[a].at[i], sums.at[i]);
    }
  }
};

// Merges the parts of a column.
template <typename T, bool kInShared>
__device__ __forceinline__ ColumnPart<T> merge_parts(const DecodeParams& p, const Work& work, int num_pairs, int column) {
  static_assert(kMaxPairs <= 64, "a lane has two parts");
  const int lane = threadIdx.x % 32;
  const PartRow<T, kInShared> parts(p, work, 0, column);  // [num_pairs] of them
  PartRows<T> rows;
  rows.load(parts.sums, num_pairs);
  const auto load_stats = [&](const float* from, int part) {  // from [num_pairs, 4] f32
    return part < num_pairs ? reinterpret_cast<const float4*>(from)[part] : float4{-INFINITY, 0.0f, 0.0f, 0.0f};
  };
  const float4 stats[2] = {load_stats(parts.stats, lane), load_stats(parts.stats, lane + 32)};
  ColumnPart<T> merged;
  merged.maximum = warp_max(fmaxf(stats[0].x, stats[1].x));
  float factors[2] = {rescale(stats[0].x, merged.maximum), rescale(stats[1].x, merged.maximum)};
  merged.total = warp_sum(factors[0] * stats[0].y + factors[1] * stats[1].y);
  rows.add(0, factors, merged.sums);
#pragma unroll 1
  for (int begin = rows.kAtOnce; begin < num_pairs; begin += rows.kAtOnce) {
    rows.load(parts.sums + begin * T::kHeadDim, num_pairs - begin);
    rows.add(begin, factors, merged.sums);
  }
  if constexpr (T::kCertificates) {
    const PartRow<T, kInShared> variances(p, work, 0, p.columns_per_block + column);  // [num_pairs] of them
    const float4 near = load_stats(variances.stats, lane), far = load_stats(variances.stats, lane + 32);
    factors[0] *= factors[0], factors[1] *= factors[1];
    merged.variance_total = warp_sum(factors[0] * near.y + factors[1] * far.y);
    merged.variance_norms = warp_sum(factors[0] * near.z + factors[1] * far.z);
#pragma unroll 1
    for (int begin = 0; begin < num_pairs; begin += rows.kAtOnce) {
      rows.load(variances.sums + begin * T::kHeadDim, num_pairs - begin);
      rows.add(begin, factors, merged.variance_sums);
    }
  }
  return merged;
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
template <typename T>
__device__ __forceinline__ void load_sums(Running<T>& run, int n, int e, const float* row) {  // row [head_dim] f32
  const int g = threadIdx.x % 32 / 4;
#pragma unroll
  for (int tile = 0; tile < T::kDimTiles; ++tile) {
    float2 pair;
    if constexpr (T::kKvBytes == 2) {
      pair = {row[tile * 16 + g], row[tile * 16 + g + 8]};
    } else {
      pair = *reinterpret_cast<const float2*>(row + tile * 16 + 2 * g);
    }
    run.sums[tile][n][e] = pair.x, run.sums[tile][n][e + 2] = pair.y;
  }
}

// Puts a leaf into shared memory, for warps that share a pair.
template <typename T>
__device__ __forceinline__ void store_leaf(const Running<T>& run, int num_columns, Leaf<T>& leaf) {
  for_each_slot<T>(run, num_columns, [&](int n, int e, int slot, int g, float norms) {
    store_sums<T>(run, n, e, 1.0f, leaf.sums[slot]);
    if (g != 0) return;
    leaf.maximum[slot] = run.maximum[n][e], leaf.total[slot] = run.total[n][e], leaf.norms[slot] = norms;
  });
}

// Folds a column of two leaves: what fold() does in registers.
template <typename T>
__device__ __forceinline__ ColumnPart<T> fold_leaves(const Leaf<T>& first, const Leaf<T>& second, int column) {
  constexpr float kUnscale = 1.0f / T::kWeightScale;
  constexpr int kEach = ColumnPart<T>::kEach;
  const int lane = threadIdx.x % 32, variance = T::kColumns % T::kSlots + column;
  const auto row = [&](const Leaf<T>& leaf, int slot) {
    return *reinterpret_cast<const Floats<kEach>*>(leaf.sums[slot] + lane * kEach);
  };
  const Factors factors(first.maximum[column], second.maximum[column]);
  ColumnPart<T> part;
  part.maximum = fmaxf(first.maximum[column], second.maximum[column]);
  part.total = factors.fold(first.total[column], second.total[column]);
  const auto fold_rows = [&](const Factors& by, int slot) {
    Floats<kEach> result = row(first, slot);
    const Floats<kEach> other = row(second, slot);
#pragma unroll
    for (int i = 0; i < kEach; ++i) result.at[i] = by.fold(result.at[i], other.at[i]);
    return result;
  };
  part.sums = fold_rows(factors, column);
  if constexpr (T::kCertificates) {
    const Factors squared = factors.squared();
    part.variance_total = squared.fold(first.total[variance], second.total[variance]);
    part.variance_norms = squared.fold(first.norms[variance], second.norms[variance]);
    part.variance_sums = fold_rows(squared, variance);
  }
  part.total *= kUnscale, part.variance_total *= kUnscale, part.variance_norms *= kUnscale;
#pragma unroll
  for (int i = 0; i < kEach; ++i) part.sums.at[i] *= kUnscale, part.variance_sums.at[i] *= kUnscale;
  return part;
}

// Stores what one warp has of a pair: its first leaf, for load_pair(); or the part that store_part() stores where two warps share it,
// with the scale of weights taken out.
template <typename T, bool kInShared>
__device__ __forceinline__ void store_pair(const DecodeParams& p, const Work& work, int pair, const Running<T>& run,
                                           float scale) {
  for_each_slot<T>(run, work.place.num_columns, [&](int n, int e, int slot, int g, float norms) {
    const PartRow<T, kInShared> row(p, work, pair, part_slot<T>(p, slot));
    store_sums<T>(run, n, e, scale, row.sums);
    if (g == 0) *reinterpret_cast<float4*>(row.stats) = {run.maximum[n][e], run.total[n][e] * scale, norms * scale, 0.0f};
  });
}
template <typename T, bool kInShared>
__device__ __forceinline__ void load_pair(const DecodeParams& p, const Work& work, int pair, Running<T>& run) {
  const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
  const auto used = [&](int slot) { return slot % T::kColumns < work.place.num_columns; };
  run.clear();
  __syncwarp();  // lanes read what others stored
#pragma unroll
  for (int n = 0; n < T::kColumnTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int slot = n * 8 + 2 * c + e;
      if (!used(slot)) continue;
      const PartRow<T, kInShared> row(p, work, pair, part_slot<T>(p, slot));
      const float4 stats = *reinterpret_cast<const float4*>(row.stats);
      run.maximum[n][e] = stats.x, run.total[n][e] = stats.y;
      load_sums<T>(run, n, e, row.sums);
    }
    if (T::kCertificates && used(n * 8 + g)) {
      run.norms[n] = PartRow<T, kInShared>(p, work, pair, part_slot<T>(p, n * 8 + g)).stats[2];
    }
  }
  __syncwarp();  // and all have read before the pair's part takes the place of its first leaf
}

// Adds the second leaf of a pair to the first, the lanes of both added. An empty side leaves the other's bits as they are.
template <typename T>
__device__ __forceinline__ void fold(Running<T>& first, const Running<T>& second) {
#pragma unroll
  for (int n = 0; n < T::kColumnTiles; ++n) {
    Factors factors[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      factors[e] = Factors(first.maximum[n][e], second.maximum[n][e]);
      if (holds_variance<T>(n)) factors[e] = factors[e].squared();
      first.maximum[n][e] = fmaxf(first.maximum[n][e], second.maximum[n][e]);
      first.total[n][e] = factors[e].fold(first.total[n][e], second.total[n][e]);
#pragma unroll
      for (int tile = 0; tile < T::kDimTiles; ++tile) {
        first.sums[tile][n][e] = factors[e].fold(first.sums[tile][n][e], second.sums[tile][n][e]);
        first.sums[tile][n][e + 2] = factors[e].fold(first.sums[tile][n][e + 2], second.sums[tile][n][e + 2]);
      }
    }
    if constexpr (T::kCertificates) {
      const int g = threadIdx.x % 32 / 4;  // the norms' slot
      const auto of_slot = [&](float even, float odd) {
        even = __shfl_sync(0xffffffffu, even, g / 2), odd = __shfl_sync(0xffffffffu, odd, g / 2);
        return g % 2 == 0 ? even : odd;
      };
      Factors norms;
      norms.before = of_slot(factors[0].before, factors[1].before);
      norms.after = of_slot(factors[0].after, factors[1].after);
      first.norms[n] = norms.fold(first.norms[n], second.norms[n]);
    }
  }
}

// What the warps of a block have when all rows are read: their leaves, or pairs that are stored already. Writes the results of a list of
// one pair. Else stores parts, and the block that is last merges all.
template <typename T>
__device__ __forceinline__ void finish(const DecodeParams& p, const Work& work, int num_pairs, const Shares& shares,
                                       const Running<T>& leaf, Shared<T>& shared) {
  const int warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
  const Place& place = work.place;
  if (shares.two_warps) {
    const int block_pairs = shares.block_pairs(num_pairs);
    __syncwarp();  // the warp's rows are read
    if (warp < kPairLeaves * block_pairs) store_leaf<T>(leaf, place.num_columns, shared.leaf(warp));
    __syncthreads();
    for (int which = 0, column = warp;; column += num_warps) {
      while (column >= place.num_columns) column -= place.num_columns, ++which;
      if (which >= block_pairs) break;
      const ColumnPart<T> part =
          fold_leaves<T>(shared.leaf(which * kPairLeaves), shared.leaf(which * kPairLeaves + 1), column);
      if (num_pairs == 1) {
        write_column<T>(p, place, column, part);
      } else {
        where_parts_are(work, [&]<bool kInShared>() {
          store_part<T, kInShared>(p, work, place.block * block_pairs + which, column, part);
        });
      }
    }
  }
  if (num_pairs == 1) return;
  int first_column = warp, column_step = num_warps;
  if (work.in_shared) {
    if (shares.blocks == 1) {
      __syncthreads();
    } else {
      arrive_at_cluster();
      if (place.block >> p.parts_column_bits != 0) return;
      wait_for_cluster();
    }
    first_column = place.block + (warp << p.parts_column_bits), column_step = num_warps << p.parts_column_bits;
  } else {
    __syncthreads();
    if (shares.blocks > 1) {  // a list in one block needs no count, which takes half a microsecond
      if (threadIdx.x == 0) {
        int32_t* counter = p.counters + place.list_row(p) * p.num_column_blocks + place.column_block;  // [1] i32
        shared.last = arrive(counter) == shares.blocks - 1 ? 1 : 0;
        if (shared.last != 0) *counter = 0;  // for the next run
      }
      __syncthreads();
      if (shared.last == 0) return;
    }
  }
  for (int column = first_column; column < place.num_columns; column += column_step) {
    ColumnPart<T> part;
    where_parts_are(work, [&]<bool kInShared>() { part = merge_parts<T, kInShared>(p, work, num_pairs, column); });
    write_column<T>(p, place, column, part);
  }
}

}  // namespace rarefy::cuda
