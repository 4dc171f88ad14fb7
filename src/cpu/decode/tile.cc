#include "cpu/decode/tile.h"

#include "cpu/decode/amx.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/decode/tile.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "cpu/simd/exp-inl.h"
#include "cpu/simd/loads-inl.h"
#include "cpu/simd/targets.h"
#include "hwy/contrib/math/math-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {

// Query rows that share one load of a key or value vector: 4 x 4 sums take half of the 32 registers of AVX-512 and NEON.
constexpr int32_t kRowBlock = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON ? 4 : 2;
constexpr float kNegInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLn2 = 0.693147181f;

// scores [kRows, kTileTokens] f32 of query rows q [kRows, head_dim] f32, in the columns of 4 tokens, whose keys [4] pointers are.
template <class Rows, int32_t kRows>
HWY_INLINE void score_block(const float* HWY_RESTRICT q, int32_t head_dim, const void* const* keys,
                            float* HWY_RESTRICT scores) {
  using Element = typename Rows::Element;
  VF sum[kRows][4];
  for (auto& row : sum) {
    for (auto& v : row) v = hn::Zero(F32());
  }
  int32_t d = 0;
  for (; d + 2 * kLanes <= head_dim; d += 2 * kLanes) {
    VF first[4], second[4];
    for (int32_t t = 0; t < 4; ++t) Rows::pair(static_cast<const Element*>(keys[t]) + d, first[t], second[t]);
    for (int32_t r = 0; r < kRows; ++r) {
      const auto q_first = hn::Load(F32(), q + r * head_dim + d);
      const auto q_second = hn::Load(F32(), q + r * head_dim + d + kLanes);
      for (int32_t t = 0; t < 4; ++t) {
        sum[r][t] = hn::MulAdd(q_first, first[t], sum[r][t]);
        sum[r][t] = hn::MulAdd(q_second, second[t], sum[r][t]);
      }
    }
  }
  if (d < head_dim) {
    for (int32_t t = 0; t < 4; ++t) {
      const auto key = Rows::one(static_cast<const Element*>(keys[t]) + d);
      for (int32_t r = 0; r < kRows; ++r) sum[r][t] = hn::MulAdd(hn::Load(F32(), q + r * head_dim + d), key, sum[r][t]);
    }
  }
  for (int32_t r = 0; r < kRows; ++r) {
    hn::StoreU(sum4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]), F32x4(), scores + r * kTileTokens);
  }
}

template <class Rows>
void score_tile(const Tile& tile, float* HWY_RESTRICT scores) {
  const int32_t lines = num_cache_lines(tile.head_dim * static_cast<int64_t>(sizeof(typename Rows::Element)));
  for (int32_t t = 0; t < tile.num_tokens; t += 4) {
    // The last step of a short tile fetches what is left of the next tile.
    const int32_t end_step = t + 4 < tile.num_tokens ? t / 4 + 1 : kFetchSteps;
    for (int32_t step = t / 4; tile.next_keys != nullptr && step < end_step; ++step) {
      fetch_lines(tile.next_keys, tile.next_scattered, step, 0, lines);
      fetch_lines(tile.next_values, tile.next_scattered, step, 0, lines);
    }
    int32_t r = 0;
    for (; r + kRowBlock <= tile.num_rows; r += kRowBlock) {
      score_block<Rows, kRowBlock>(tile.q + r * tile.head_dim, tile.head_dim, tile.keys + t, scores + r * kTileTokens + t);
    }
    if constexpr (kRowBlock == 4) {
      if (r + 2 <= tile.num_rows) {
        score_block<Rows, 2>(tile.q + r * tile.head_dim, tile.head_dim, tile.keys + t, scores + r * kTileTokens + t);
        r += 2;
      }
    }
    if (r < tile.num_rows) {
      score_block<Rows, 1>(tile.q + r * tile.head_dim, tile.head_dim, tile.keys + t, scores + r * kTileTokens + t);
    }
  }
}

// sums[r][d ..] = sums[r][d ..] * rescale[r] + sum_t weights[r][t] * values[t][d ..] for kVectors vectors of elements:
// weights [kRows, kTileTokens] f32, rescale [kRows] f32, sums [kRows, head_dim] f32.
template <class Rows, int32_t kRows, int32_t kVectors>
HWY_INLINE void value_block(const void* const* values, int32_t num_tokens, int32_t d, int32_t head_dim,
                            const float* HWY_RESTRICT weights, const float* HWY_RESTRICT rescale,
                            float* HWY_RESTRICT sums) {
  using Element = typename Rows::Element;
  VF sum[kRows][kVectors];
  for (int32_t r = 0; r < kRows; ++r) {
    const auto factor = hn::Set(F32(), rescale[r]);
    for (int32_t i = 0; i < kVectors; ++i) {
      sum[r][i] = hn::Mul(factor, hn::Load(F32(), sums + r * head_dim + d + i * kLanes));
    }
  }
  for (int32_t t = 0; t < num_tokens; ++t) {
    const Element* HWY_RESTRICT row = static_cast<const Element*>(values[t]) + d;
    VF value[kVectors];
    if constexpr (kVectors == 1) {
      value[0] = Rows::one(row);
    } else {
      for (int32_t i = 0; i < kVectors; i += 2) Rows::pair(row + i * kLanes, value[i], value[i + 1]);
    }
    for (int32_t r = 0; r < kRows; ++r) {
      const auto weight = hn::Set(F32(), weights[r * kTileTokens + t]);
      for (int32_t i = 0; i < kVectors; ++i) sum[r][i] = hn::MulAdd(weight, value[i], sum[r][i]);
    }
  }
  for (int32_t r = 0; r < kRows; ++r) {
    for (int32_t i = 0; i < kVectors; ++i) hn::Store(sum[r][i], F32(), sums + r * head_dim + d + i * kLanes);
  }
}

template <class Rows, int32_t kRows>
HWY_INLINE void value_rows(const Tile& tile, const float* weights, const float* rescale, float* sums) {
  int32_t d = 0;
  for (; d + 4 * kLanes <= tile.head_dim; d += 4 * kLanes) {
    value_block<Rows, kRows, 4>(tile.values, tile.num_tokens, d, tile.head_dim, weights, rescale, sums);
  }
  for (; d + 2 * kLanes <= tile.head_dim; d += 2 * kLanes) {
    value_block<Rows, kRows, 2>(tile.values, tile.num_tokens, d, tile.head_dim, weights, rescale, sums);
  }
  if (d < tile.head_dim)
    value_block<Rows, kRows, 1>(tile.values, tile.num_tokens, d, tile.head_dim, weights, rescale, sums);
}

template <class Rows>
void value_tile(const Tile& tile, const float* weights, const float* rescale, float* sums) {
  int32_t r = 0;
  for (; r + kRowBlock <= tile.num_rows; r += kRowBlock) {
    value_rows<Rows, kRowBlock>(tile, weights + r * kTileTokens, rescale + r, sums + r * tile.head_dim);
  }
  if constexpr (kRowBlock == 4) {
    if (r + 2 <= tile.num_rows) {
      value_rows<Rows, 2>(tile, weights + r * kTileTokens, rescale + r, sums + r * tile.head_dim);
      r += 2;
    }
  }
  if (r < tile.num_rows) value_rows<Rows, 1>(tile, weights + r * kTileTokens, rescale + r, sums + r * tile.head_dim);
}

// |v|^2 of every token: norms [kTileTokens] f32.
template <class Rows>
void norms_tile(const Tile& tile, float* HWY_RESTRICT norms) {
  using Element = typename Rows::Element;
  for (int32_t t = 0; t < tile.num_tokens; t += 4) {
    VF sum[4];
    for (int32_t j = 0; j < 4; ++j) {
      const Element* row = static_cast<const Element*>(tile.values[t + j]);
      sum[j] = hn::Zero(F32());
      int32_t d = 0;
      for (; d + 2 * kLanes <= tile.head_dim; d += 2 * kLanes) {
        VF first, second;
        Rows::pair(row + d, first, second);
        sum[j] = hn::MulAdd(second, second, hn::MulAdd(first, first, sum[j]));
      }
      if (d < tile.head_dim) {
        const auto value = Rows::one(row + d);
        sum[j] = hn::MulAdd(value, value, sum[j]);
      }
    }
    hn::StoreU(sum4(sum[0], sum[1], sum[2], sum[3]), F32x4(), norms + t);
  }
}

// Dot products of one row (scores [kTileTokens] f32) to weights relative to the new maximum. Returns the factor for what was
// summed before. log2_weight [num_tokens] f32.
template <class Rows>
HWY_INLINE float soften(const Tile& tile, int32_t row, const float* HWY_RESTRICT log2_weight, float* HWY_RESTRICT scores,
                        float* HWY_RESTRICT stats) {
  const F32 d;
  for (int32_t t = tile.num_tokens; t < kTileTokens; ++t) scores[t] = kNegInfinity;
  const auto scale = hn::Set(d, tile.soft_cap > 0.0f ? tile.scale / tile.soft_cap : tile.scale * kLog2E);
  const auto cap = hn::Set(d, tile.soft_cap * kLog2E);
  const auto infinity = hn::Set(d, -kNegInfinity);
  auto maximum = hn::Neg(infinity);
  for (int32_t t = 0; t < kTileTokens; t += kLanes) {
    const auto dot = hn::Load(d, scores + t);
    auto s = hn::Mul(dot, scale);
    if (tile.soft_cap > 0.0f) s = hn::Mul(cap, hn::Tanh(d, s));
    if (log2_weight != nullptr) s = hn::Add(s, hn::Load(d, log2_weight + t));
    // Entries past the end hold -inf, which a negative scale or the cap would change.
    s = hn::IfThenElse(hn::Eq(dot, hn::Neg(infinity)), dot, s);
    hn::Store(s, d, scores + t);
    maximum = hn::Max(maximum, s);
  }
  float tile_maximum = hn::GetLane(hn::MaxOfLanes(d, maximum));
  if (tile.last_visible != nullptr) {
    tile_maximum = kNegInfinity;
    for (int32_t t = 0; t < tile.num_tokens; ++t) {
      if (tile.token_ids[t] > tile.last_visible[row]) scores[t] = kNegInfinity;
      tile_maximum = scores[t] > tile_maximum ? scores[t] : tile_maximum;
    }
  }
  const float old_maximum = stats[0];
  const float new_maximum = tile_maximum > old_maximum ? tile_maximum : old_maximum;
  // Nothing visible so far: any finite reference turns -inf into weight 0.
  const auto reference = hn::Set(d, new_maximum == kNegInfinity ? 0.0f : new_maximum);
  auto sum = hn::Zero(d);
  for (int32_t t = 0; t < kTileTokens; t += kLanes) {
    const auto p = Rows::round_weight(exp2_nonpositive(d, hn::Sub(hn::Load(d, scores + t), reference)));
    hn::Store(p, d, scores + t);
    sum = hn::Add(sum, p);
  }
  const float factor =
      old_maximum == new_maximum ? 1.0f : hn::GetLane(exp2_nonpositive(d, hn::Sub(hn::Set(d, old_maximum), reference)));
  stats[0] = new_maximum;
  stats[1] = stats[1] * factor + hn::GetLane(hn::SumOfLanes(d, sum));
  return factor;
}

template <class Rows>
void add_typed_tile(const Tile& tile, const Partial& partial) {
  const F32 d;
  HWY_ALIGN float scores[kMaxTileRows * kTileTokens];  // [num_rows, kTileTokens] f32
  HWY_ALIGN float rescale[kMaxTileRows];               // [num_rows] f32
  HWY_ALIGN float log_weight[kTileTokens] = {};        // [kTileTokens] f32
  HWY_ALIGN float log2_weight[kTileTokens] = {};       // [kTileTokens] f32
  if (tile.log_weight != nullptr) {
    for (int32_t t = 0; t < tile.num_tokens; ++t) log_weight[t] = tile.log_weight[t];
    for (int32_t t = 0; t < tile.num_tokens; ++t) log2_weight[t] = tile.log_weight[t] * kLog2E;
  }
  score_tile<Rows>(tile, scores);
  const float* weights = tile.log_weight != nullptr ? log2_weight : nullptr;
  for (int32_t r = 0; r < tile.num_rows; ++r) {
    rescale[r] = soften<Rows>(tile, r, weights, scores + r * kTileTokens, partial.stats + r * kRowStats);
  }
  value_tile<Rows>(tile, scores, rescale, partial.sum);
  if (!tile.with_variance) return;

  HWY_ALIGN float norms[kTileTokens] = {};  // [kTileTokens] f32
  HWY_ALIGN float sampled[kTileTokens];     // [kTileTokens] f32; 1 - inclusion probability
  if (partial.spread != nullptr) norms_tile<Rows>(tile, norms);
  for (int32_t t = 0; t < kTileTokens; t += kLanes) {
    hn::Store(hn::Neg(hn::Expm1(d, hn::Neg(hn::Load(d, log_weight + t)))), d, sampled + t);
  }
  for (int32_t r = 0; r < tile.num_rows; ++r) {
    auto sum = hn::Zero(d), norm_sum = hn::Zero(d);
    for (int32_t t = 0; t < kTileTokens; t += kLanes) {
      const auto p = hn::Load(d, scores + r * kTileTokens + t);
      const auto w = Rows::round_weight(hn::Mul(hn::Mul(p, p), hn::Load(d, sampled + t)));
      hn::Store(w, d, scores + r * kTileTokens + t);
      sum = hn::Add(sum, w);
      norm_sum = hn::MulAdd(w, hn::Load(d, norms + t), norm_sum);
    }
    rescale[r] *= rescale[r];
    float* stats = partial.stats + r * kRowStats;
    stats[2] = stats[2] * rescale[r] + hn::GetLane(hn::SumOfLanes(d, sum));
    stats[3] = stats[3] * rescale[r] + hn::GetLane(hn::SumOfLanes(d, norm_sum));
  }
  if (partial.spread != nullptr) value_tile<Rows>(tile, scores, rescale, partial.spread);
}

template <class Function>
HWY_INLINE void with_rows(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::f32: return function(F32Rows());
    case DType::f16: return function(F16Rows());
    default: return function(Bf16Rows());
  }
}

void add_tile(const Tile& tile, const Partial& partial) {
  with_rows(tile.kv_dtype, [&](auto rows) HWY_ATTR { add_typed_tile<decltype(rows)>(tile, partial); });
}

void start(int32_t num_rows, int32_t head_dim, const Partial& partial) {
  const F32 d;
  for (int32_t i = 0; i < num_rows * head_dim; i += kLanes) {
    hn::Store(hn::Zero(d), d, partial.sum + i);
    if (partial.spread != nullptr) hn::Store(hn::Zero(d), d, partial.spread + i);
  }
  for (int32_t r = 0; r < num_rows; ++r) {
    float* stats = partial.stats + r * kRowStats;
    stats[0] = kNegInfinity;
    stats[1] = stats[2] = stats[3] = 0.0f;
  }
}

void prepare_q(DType kv_dtype, const float* q, int32_t head_dim, float* prepared) {  // prepared [head_dim] f32
  with_rows(kv_dtype, [&](auto rows) HWY_ATTR {
    int32_t i = 0;
    for (; i + 2 * kLanes <= head_dim; i += 2 * kLanes) {
      VF first, second;
      decltype(rows)::pair_f32(q + i, first, second);
      hn::Store(first, F32(), prepared + i);
      hn::Store(second, F32(), prepared + i + kLanes);
    }
    if (i < head_dim) hn::Store(hn::LoadU(F32(), q + i), F32(), prepared + i);
  });
}

template <class Rows>
void finish_typed_row(const FinishRow& row) {
  const F32 d;
  HWY_ALIGN float ordered[256];  // [head_dim] f32; out before rounding
  const float sink = row.sink * kLog2E;
  float maximum = sink;
  for (int32_t split = 0; split < row.num_splits; ++split) {
    const float split_maximum = row.stats[split * row.split_stride];
    maximum = split_maximum > maximum ? split_maximum : maximum;
  }
  if (maximum == kNegInfinity) {
    for (int32_t i = 0; i < row.head_dim; ++i) store_from_float(row.out, row.out_dtype, i, 0.0f);
    if (row.lse != nullptr) *row.lse = kNegInfinity;
    if (row.rel_std != nullptr) *row.rel_std = 0.0f;
    if (row.out_rel_std != nullptr) *row.out_rel_std = 0.0f;
    return;
  }
  float factors[64];
  float denominator = std::exp2(sink - maximum), variance = 0.0f, norm_variance = 0.0f;
  for (int32_t split = 0; split < row.num_splits; ++split) {
    const float* stats = row.stats + split * row.split_stride;
    const float factor = std::exp2(stats[0] - maximum);
    factors[split] = factor;
    denominator += factor * stats[1];
    variance += factor * factor * stats[2];
    norm_variance += factor * factor * stats[3];
  }
  const auto scale = hn::Set(d, 1.0f / denominator);
  auto norm = hn::Zero(d), cross = hn::Zero(d);
  const auto merged = [&](const float* from, int32_t i, bool squared) HWY_ATTR {
    auto sum = hn::Zero(d);
    for (int32_t split = 0; split < row.num_splits; ++split) {
      const float factor = squared ? factors[split] * factors[split] : factors[split];
      sum = hn::MulAdd(hn::Set(d, factor), hn::Load(d, from + split * row.split_stride + i), sum);
    }
    return sum;
  };
  const auto account = [&](hn::Vec<F32> out, int32_t i) HWY_ATTR {
    if (row.spread == nullptr) return;
    norm = hn::MulAdd(out, out, norm);
    cross = hn::MulAdd(out, merged(row.spread, i, true), cross);
  };
  int32_t i = 0;
  for (; i + 2 * kLanes <= row.head_dim; i += 2 * kLanes) {
    const auto first = hn::Mul(scale, merged(row.sum, i, false));
    const auto second = hn::Mul(scale, merged(row.sum, i + kLanes, false));
    account(first, i);
    account(second, i + kLanes);
    Rows::store_pair(first, second, ordered + i);
  }
  if (i < row.head_dim) {
    const auto last = hn::Mul(scale, merged(row.sum, i, false));
    account(last, i);
    hn::Store(last, d, ordered + i);
  }
  if (row.out_dtype == DType::f32) {
    float* out = static_cast<float*>(row.out);
    for (i = 0; i < row.head_dim; i += kLanes) hn::StoreU(hn::Load(d, ordered + i), d, out + i);
  } else {
    for (i = 0; i < row.head_dim; ++i) store_from_float(row.out, row.out_dtype, i, ordered[i]);
  }
  if (row.lse != nullptr) *row.lse = maximum * kLn2 + std::log(denominator);
  if (row.rel_std != nullptr) *row.rel_std = std::sqrt(variance) / denominator;
  if (row.out_rel_std == nullptr) return;
  const float norm2 = hn::GetLane(hn::SumOfLanes(d, norm));
  const float out_variance = norm_variance - 2.0f * hn::GetLane(hn::SumOfLanes(d, cross)) + norm2 * variance;
  *row.out_rel_std = out_variance > 0.0f ? std::sqrt(out_variance / norm2) / denominator : 0.0f;
}

void finish_row(const FinishRow& row) {
  with_rows(row.kv_dtype, [&](auto rows) HWY_ATTR { finish_typed_row<decltype(rows)>(row); });
}

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_TARGET == HWY_AVX3
#include "cpu/decode/tile_bf16-inl.h"
#endif
#endif  // HWY_TARGET != HWY_SCALAR

#if HWY_ONCE

namespace rarefy::cpu {
namespace {

template <int64_t kTarget>
bool has_target() {
  return (hwy::SupportedTargets() & kTarget) != 0;
}
#if HWY_TARGETS & HWY_AVX3
bool has_bf16() { return has_target<HWY_AVX3>() && __builtin_cpu_supports("avx512bf16"); }
#if RAREFY_HAS_AMX
bool has_amx() { return has_bf16() && amx_is_allowed(); }
#endif
#endif

}  // namespace

std::span<const TileFunctions> tile_functions() {
#define RAREFY_ENTRY(lower, UPPER)                                                                                    \
  {"cpu_" #lower,        false, has_target<HWY_##UPPER>, N_##UPPER::prepare_q, N_##UPPER::start, N_##UPPER::add_tile, \
   N_##UPPER::finish_row},
  static const TileFunctions table[] = {
#if HWY_TARGETS & HWY_AVX3
#if RAREFY_HAS_AMX
    {"cpu_amx_bf16", true, has_amx, N_AVX3::prepare_q_bf16, N_AVX3::start, N_AVX3::add_tile_amx, N_AVX3::finish_row_bf16,
     N_AVX3::enter_amx, N_AVX3::leave_amx, N_AVX3::pair_q_amx},
#endif
    {"cpu_avx3_bf16", true, has_bf16, N_AVX3::prepare_q_bf16, N_AVX3::start, N_AVX3::add_tile_bf16,
     N_AVX3::finish_row_bf16},
#endif
    RAREFY_FOREACH_SIMD(RAREFY_ENTRY)
  };
#undef RAREFY_ENTRY
  return table;
}

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
