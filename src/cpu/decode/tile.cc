#include "cpu/decode/tile.h"

#include "core/round_rows.h"
#include "cpu/decode/amx.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/decode/tile.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "cpu/simd/exp-inl.h"
#include "cpu/simd/loads-inl.h"
#include "cpu/simd/register-inl.h"
#include "cpu/simd/targets.h"
#include "hwy/contrib/math/math-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {

// Query rows that share one load of a key or value vector, and how many tokens' scores or vectors of values a row sums at a time:
// 4 x 4 sums take half of the 32 registers of AVX-512 and NEON, 4 x 2 half of 16.
constexpr int32_t kRowBlock = 4;
constexpr int32_t kSumsOfRow = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON ? 4 : 2;
constexpr float kNegInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLn2 = 0.693147181f;

// How the next tile's rows are fetched into the L2 cache while this one is attended to, a line or two at a time: in bursts, as
// fetch_rows() does it, they fill the queue of cache misses, and memory idles in between (dense decode on two cores of a Zen 3:
// 7.1 ms, by and by 5.7 and, evenly, 17 % less).
enum class Fetch {
  none,
  run,   // rows that follow one another in memory, from end to end, as the hardware's prefetchers like it
  turns  // rows here and there, a line of each in turns: neighbouring lines look like a stream, and what lies behind the row would come too
};

// Adds up products of query rows q [kRows, head_dim] f32 with kTokens rows of keys. Fetches as many rows from `next` on.
template <class Rows, int32_t kRows, int32_t kTokens, Fetch kFetch>
HWY_INLINE void dot_block(const float* HWY_RESTRICT q, int32_t head_dim,
                          const void* const* keys,  // [kTokens] pointers to [head_dim] elements
                          const void* const* next,  // [kTokens] pointers, likewise
                          VF (&sum)[kRows][kTokens]) {
  using Element = typename Rows::Element;
  for (auto& row : sum) {
    for (auto& v : row) v = hn::Zero(F32());
  }
  constexpr int64_t kStepBytes = 2 * kLanes * sizeof(Element);  // of each row
  const char* run = kFetch == Fetch::run ? static_cast<const char*>(next[0]) : nullptr;
  int32_t d = 0;
  for (; d + 2 * kLanes <= head_dim; d += 2 * kLanes) {
    if constexpr (kFetch == Fetch::run) {
      if (kTokens * kStepBytes >= kLineBytes || d * static_cast<int64_t>(kTokens * sizeof(Element)) % kLineBytes == 0) {
        for (int64_t byte = 0; byte < kTokens * kStepBytes; byte += kLineBytes, run += kLineBytes)
          __builtin_prefetch(run, 0, 2);
      }
    } else if constexpr (kFetch == Fetch::turns) {
      const int64_t begin = d * static_cast<int64_t>(sizeof(Element));
      for (int64_t byte = begin; byte % kLineBytes == 0 && byte < begin + kStepBytes; byte += kLineBytes) {
        for (int32_t t = 0; t < kTokens; ++t) __builtin_prefetch(static_cast<const char*>(next[t]) + byte, 0, 2);
      }
    }
    VF first[kTokens], second[kTokens];
    for (int32_t t = 0; t < kTokens; ++t) Rows::pair(static_cast<const Element*>(keys[t]) + d, first[t], second[t]);
    for (int32_t r = 0; r < kRows; ++r) {
      const auto q_first = in_register(hn::Load(F32(), q + r * head_dim + d));
      for (int32_t t = 0; t < kTokens; ++t) sum[r][t] = hn::MulAdd(q_first, first[t], sum[r][t]);
      const auto q_second = in_register(hn::Load(F32(), q + r * head_dim + d + kLanes));
      for (int32_t t = 0; t < kTokens; ++t) sum[r][t] = hn::MulAdd(q_second, second[t], sum[r][t]);
    }
  }
  if (d < head_dim) {
    for (int32_t t = 0; t < kTokens; ++t) {
      const auto key = Rows::one(static_cast<const Element*>(keys[t]) + d);
      for (int32_t r = 0; r < kRows; ++r) sum[r][t] = hn::MulAdd(hn::Load(F32(), q + r * head_dim + d), key, sum[r][t]);
    }
  }
}

// scores [kRows, kTileTokens] f32 of query rows q [kRows, head_dim] f32, in the columns of four tokens.
template <class Rows, int32_t kRows, Fetch kFetch>
HWY_INLINE void score_block(const float* HWY_RESTRICT q, int32_t head_dim,
                            const void* const* keys,  // [4] pointers to [head_dim] elements
                            const void* const* next,  // [4] pointers, likewise; to fetch
                            float* HWY_RESTRICT scores) {
  VF pairs[2][kRows];  // sums of two tokens
  for (int32_t first = 0; first < 4; first += kSumsOfRow) {
    VF sum[kRows][kSumsOfRow];
    dot_block<Rows, kRows, kSumsOfRow, kFetch>(q, head_dim, keys + first, next + first, sum);
    for (int32_t r = 0; r < kRows; ++r) {
      for (int32_t t = 0; t < kSumsOfRow; t += 2) pairs[(first + t) / 2][r] = sum2(sum[r][t], sum[r][t + 1]);
    }
  }
  for (int32_t r = 0; r < kRows; ++r) {
    hn::StoreU(sum4_of_pairs(pairs[0][r], pairs[1][r]), F32x4(), scores + r * kTileTokens);
  }
}

// Query rows [row, row + kRows) and four tokens; the first rows of a tile fetch.
template <class Rows, int32_t kRows, Fetch kFetch>
HWY_INLINE void score_rows(const Tile& tile, int32_t row, int32_t token,
                           float* HWY_RESTRICT scores) {  // [num_rows, kTileTokens] f32
  const float* q = tile.q + row * tile.head_dim;          // [kRows, head_dim] f32
  const void* const* keys = tile.keys + token;
  float* to = scores + row * kTileTokens + token;
  if (kFetch != Fetch::none && row == 0) {
    score_block<Rows, kRows, kFetch>(q, tile.head_dim, keys, tile.next_keys + token, to);
  } else {
    score_block<Rows, kRows, Fetch::none>(q, tile.head_dim, keys, keys, to);
  }
}

template <class Rows, Fetch kFetch>
HWY_INLINE void score_tile_and_fetch(const Tile& tile, float* HWY_RESTRICT scores) {
  for (int32_t t = 0; t < tile.num_tokens; t += 4) {
    int32_t row = 0;
    for (; row + kRowBlock <= tile.num_rows; row += kRowBlock) score_rows<Rows, kRowBlock, kFetch>(tile, row, t, scores);
    if (row + 2 <= tile.num_rows) score_rows<Rows, 2, kFetch>(tile, row, t, scores), row += 2;
    if (row < tile.num_rows) score_rows<Rows, 1, kFetch>(tile, row, t, scores);
  }
}

// How the kernels of this file fetch the next tile. A short tile or rows of keys that are not made of whole lines leave no place for it: then
// all is fetched at once.
template <class Rows>
Fetch fetch_of(const Tile& tile) {
  const int64_t row_bytes = tile.head_dim * static_cast<int64_t>(sizeof(typename Rows::Element));
  const bool in_steps = tile.num_tokens == kTileTokens && row_bytes % kLineBytes == 0;
  if (tile.next_keys == nullptr || !in_steps) return Fetch::none;
  return tile.next_row_stride == row_bytes ? Fetch::run : Fetch::turns;
}

// Calls function.operator()<fetch>().
template <class Function>
HWY_INLINE void with_fetch(Fetch fetch, const Function& function) {
  switch (fetch) {
    case Fetch::none: return function.template operator()<Fetch::none>();
    case Fetch::run: return function.template operator()<Fetch::run>();
    case Fetch::turns: return function.template operator()<Fetch::turns>();
  }
}

// fetch_of(), for what begins with a tile; where that found no place, everything is fetched here, at once. Always inline, as fetch_rows().
template <class Rows>
HWY_INLINE Fetch begin_fetch(const Tile& tile) {
  const Fetch fetch = fetch_of<Rows>(tile);
  if (fetch == Fetch::none && tile.next_keys != nullptr) {
    const int32_t lines = num_cache_lines(tile.head_dim * static_cast<int64_t>(sizeof(typename Rows::Element)));
    fetch_rows(tile.next_keys, tile.next_scattered, lines);
    fetch_rows(tile.next_values, tile.next_scattered, lines);
  }
  return fetch;
}

template <class Rows>
void score_tile(const Tile& tile, float* HWY_RESTRICT scores) {
  with_fetch(begin_fetch<Rows>(tile), [&]<Fetch kFetch>() HWY_ATTR { score_tile_and_fetch<Rows, kFetch>(tile, scores); });
}

// Where the weight of a query row and token is.
struct ByRow {  // [num_rows, kTileTokens]
  static constexpr int32_t at(int32_t row, int32_t token) { return row * kTileTokens + token; }
};
struct ByToken {  // [kTileTokens, 4]
  static constexpr int32_t at(int32_t row, int32_t token) { return token * 4 + row; }
};

// sums[r][d ..] = sums[r][d ..] * rescale[r] + sum_t weights[r][t] * values[t][d ..] for kVectors vectors of elements.
// Fetches the same part of the next tile's values.
template <class Rows, class Weights, int32_t kRows, int32_t kVectors, Fetch kFetch>
HWY_INLINE void value_block(const Tile& tile, int32_t d,
                            const float* HWY_RESTRICT weights,  // [kRows, kTileTokens] f32, as Weights::at says
                            const float* HWY_RESTRICT rescale,  // [kRows] f32
                            float* HWY_RESTRICT sums) {         // [kRows, head_dim] f32
  using Element = typename Rows::Element;
  constexpr int64_t kBytes = kVectors * kLanes * sizeof(Element);  // of each row
  const int32_t head_dim = tile.head_dim;
  VF sum[kRows][kVectors];
  for (int32_t r = 0; r < kRows; ++r) {
    const auto factor = hn::Set(F32(), rescale[r]);
    for (int32_t i = 0; i < kVectors; ++i) {
      sum[r][i] = hn::Mul(factor, hn::Load(F32(), sums + r * head_dim + d + i * kLanes));
    }
  }
  const auto add_token = [&](int32_t t) HWY_ATTR {
    const Element* HWY_RESTRICT row = static_cast<const Element*>(tile.values[t]) + d;
    VF value[kVectors];
    if constexpr (kVectors == 1) {
      value[0] = Rows::one(row);
    } else {
      for (int32_t i = 0; i < kVectors; i += 2) Rows::pair(row + i * kLanes, value[i], value[i + 1]);
    }
    for (int32_t r = 0; r < kRows; ++r) {
      const auto weight = hn::Set(F32(), weights[Weights::at(r, t)]);
      for (int32_t i = 0; i < kVectors; ++i) sum[r][i] = hn::MulAdd(weight, value[i], sum[r][i]);
    }
  };
  if constexpr (kFetch == Fetch::none) {
    for (int32_t t = 0; t < tile.num_tokens; ++t) add_token(t);
  } else {
    // A part of a row smaller than a line: a line for every so many tokens, of as many rows of the next tile.
    constexpr int32_t kTokensOfLine = kBytes < kLineBytes ? static_cast<int32_t>(kLineBytes / kBytes) : 1;
    const int64_t first_byte = d * static_cast<int64_t>(sizeof(Element)), line_byte = first_byte / kLineBytes * kLineBytes;
    const auto* run = static_cast<const char*>(tile.next_values[0]) + first_byte * kTileTokens;
    const void* const* turn = tile.next_values + (first_byte - line_byte) * kTileTokens / kLineBytes;
    for (int32_t t = 0; t < kTileTokens; t += kTokensOfLine, ++turn) {
      for (int64_t byte = 0; byte < kBytes; byte += kLineBytes, run += kLineBytes) {
        __builtin_prefetch(kFetch == Fetch::run ? run : static_cast<const char*>(*turn) + line_byte + byte, 0, 2);
      }
#pragma GCC unroll 4
      for (int32_t i = 0; i < kTokensOfLine; ++i) add_token(t + i);
    }
  }
  for (int32_t r = 0; r < kRows; ++r) {
    for (int32_t i = 0; i < kVectors; ++i) hn::Store(sum[r][i], F32(), sums + r * head_dim + d + i * kLanes);
  }
}

template <class Rows, class Weights, int32_t kRows, Fetch kFetch>
HWY_INLINE void value_rows(const Tile& tile,
                           const float* weights,  // [kRows, kTileTokens] f32, as Weights::at says
                           const float* rescale,  // [kRows] f32
                           float* sums) {         // [kRows, head_dim] f32
  int32_t d = 0;
  for (; d + kSumsOfRow * kLanes <= tile.head_dim; d += kSumsOfRow * kLanes) {
    value_block<Rows, Weights, kRows, kSumsOfRow, kFetch>(tile, d, weights, rescale, sums);
  }
  for (; d + 2 * kLanes <= tile.head_dim; d += 2 * kLanes) {
    value_block<Rows, Weights, kRows, 2, Fetch::none>(tile, d, weights, rescale, sums);
  }
  if (d < tile.head_dim) value_block<Rows, Weights, kRows, 1, Fetch::none>(tile, d, weights, rescale, sums);
}

template <class Rows, class Weights, int32_t kRows>
HWY_INLINE void value_rows_and_fetch(const Tile& tile, Fetch fetch,
                                     const float* weights,  // [kRows, kTileTokens] f32, as Weights::at says
                                     const float* rescale,  // [kRows] f32
                                     float* sums) {         // [kRows, head_dim] f32
  with_fetch(fetch,
             [&]<Fetch kFetch>() HWY_ATTR { value_rows<Rows, Weights, kRows, kFetch>(tile, weights, rescale, sums); });
}

// With `fetch` the next tile's values are fetched.
template <class Rows>
void value_tile(const Tile& tile,
                const float* weights,  // [num_rows, kTileTokens] f32
                const float* rescale,  // [num_rows] f32
                float* sums,           // [num_rows, head_dim] f32
                bool fetch) {
  Fetch how = fetch ? fetch_of<Rows>(tile) : Fetch::none;  // by the first rows
  int32_t left = tile.num_rows;
  const auto advance = [&](int32_t rows) {
    weights += rows * kTileTokens, rescale += rows, sums += rows * tile.head_dim, left -= rows;
    how = Fetch::none;
  };
  while (left >= kRowBlock) {
    value_rows_and_fetch<Rows, ByRow, kRowBlock>(tile, how, weights, rescale, sums);
    advance(kRowBlock);
  }
  if (left >= 2) value_rows_and_fetch<Rows, ByRow, 2>(tile, how, weights, rescale, sums), advance(2);
  if (left > 0) value_rows_and_fetch<Rows, ByRow, 1>(tile, how, weights, rescale, sums);
}

// |v|^2 of every token: norms [kTileTokens] f32.
template <class Rows>
void norms_tile(const Tile& tile, float* HWY_RESTRICT norms) {
  using Element = typename Rows::Element;
  for (int32_t t = 0; t < tile.num_tokens; t += 4) {  // four tokens at a time: the additions of one wait for each other
    VF sum[4] = {hn::Zero(F32()), hn::Zero(F32()), hn::Zero(F32()), hn::Zero(F32())};
    const auto element = [&](int32_t j, int32_t d) { return static_cast<const Element*>(tile.values[t + j]) + d; };
    int32_t d = 0;
    for (; d + 2 * kLanes <= tile.head_dim; d += 2 * kLanes) {
      for (int32_t j = 0; j < 4; ++j) {
        VF first, second;
        Rows::pair(element(j, d), first, second);
        sum[j] = hn::MulAdd(second, second, hn::MulAdd(first, first, sum[j]));
      }
    }
    for (int32_t j = 0; j < 4 && d < tile.head_dim; ++j) {
      const auto value = Rows::one(element(j, d));
      sum[j] = hn::MulAdd(value, value, sum[j]);
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
  HWY_ALIGN float log_weight[kTileTokens];             // [kTileTokens] f32; with log weights, 0 past the end
  HWY_ALIGN float log2_weight[kTileTokens];            // [kTileTokens] f32; likewise
  if (tile.log_weight != nullptr) {
    for (int32_t t = 0; t < kTileTokens; ++t) log_weight[t] = t < tile.num_tokens ? tile.log_weight[t] : 0.0f;
    for (int32_t t = 0; t < kTileTokens; ++t) log2_weight[t] = log_weight[t] * kLog2E;
  }
  score_tile<Rows>(tile, scores);
  const float* weights = tile.log_weight != nullptr ? log2_weight : nullptr;
  for (int32_t r = 0; r < tile.num_rows; ++r) {
    rescale[r] = soften<Rows>(tile, r, weights, scores + r * kTileTokens, partial.stats + r * kRowStats);
  }
  value_tile<Rows>(tile, scores, rescale, partial.sum, true);
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
  if (partial.spread != nullptr) value_tile<Rows>(tile, scores, rescale, partial.spread, false);
}

#if HWY_TARGET == HWY_AVX2
#include "cpu/decode/tile_four-inl.h"
#endif

template <class Function>
HWY_INLINE void with_rows(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::f32: return function(F32Rows());
    case DType::f16: return function(F16Rows());
    default: return function(Bf16Rows());
  }
}

void add_tile(const Tile& tile, const Partial& partial) {
  with_rows(tile.kv_dtype, [&](auto rows) HWY_ATTR {
#if HWY_TARGET == HWY_AVX2
    if (tile.is_quads()) return add_fours<decltype(rows)>(tile, partial);
#endif
    add_typed_tile<decltype(rows)>(tile, partial);
  });
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
  round_row(ordered, row.head_dim, row.out_dtype, row.out);
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
#define RAREFY_ENTRY(lower, UPPER)                   \
  {"cpu_" #lower,           false,                   \
   HWY_##UPPER == HWY_AVX2, has_target<HWY_##UPPER>, \
   N_##UPPER::prepare_q,    N_##UPPER::start,        \
   N_##UPPER::add_tile,     N_##UPPER::finish_row},
  static const TileFunctions table[] = {
#if HWY_TARGETS & HWY_AVX3
#if RAREFY_HAS_AMX
    {"cpu_amx_bf16", true, false, has_amx, N_AVX3::prepare_q_bf16, N_AVX3::start, N_AVX3::add_tile_amx,
     N_AVX3::finish_row_bf16, N_AVX3::enter_amx, N_AVX3::leave_amx, N_AVX3::pair_q_amx},
#endif
    {"cpu_avx3_bf16", true, false, has_bf16, N_AVX3::prepare_q_bf16, N_AVX3::start, N_AVX3::add_tile_bf16,
     N_AVX3::finish_row_bf16},
#endif
    RAREFY_FOREACH_SIMD(RAREFY_ENTRY)
  };
#undef RAREFY_ENTRY
  return table;
}

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
