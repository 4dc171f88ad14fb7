// Tiles of a bf16 cache by the bf16 dot product of AVX512_BF16, which Highway 1.0.3 does not offer: 32 products an
// instruction where an f32 multiply-add does 16, and no conversions. Included by tile.cc for AVX3 only.
//
//   scores: q is split into two bf16 parts, q = high + low within 2^-16 |q|, and both are multiplied; one part where q is bf16.
//   values: pairs of tokens are interleaved, so that one instruction adds two tokens. Weights are rounded to bf16 (2^-8), and
//   the denominator sums the rounded weights, so that they still add up to 1.
//
// Tile order: within 32 dimensions the first vector holds elements 0-3 of every 8, the second 4-7.
HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace N_AVX3 {

struct DotRows {
  using Element = uint16_t;
  // The nearest number of 8 significant bits (Veltkamp's splitting), which is what bf16 holds; weights are at most 1.
  static HWY_INLINE VF round_weight(VF weight) {
    const auto scaled = hn::Mul(weight, hn::Set(F32(), 65537.0f));
    return hn::Sub(scaled, hn::Sub(scaled, weight));
  }
  static HWY_INLINE void store_pair(VF first, VF second, float* HWY_RESTRICT to) {  // to [2 * kLanes] f32
    const auto low = hn::ConcatLowerLower(F32(), second, first), high = hn::ConcatUpperUpper(F32(), second, first);
    // Blocks (a0 a1 b0 b1) -> (a0 b0 a1 b1).
    hn::StoreU(VF{_mm512_shuffle_f32x4(low.raw, low.raw, 0xd8)}, F32(), to);
    hn::StoreU(VF{_mm512_shuffle_f32x4(high.raw, high.raw, 0xd8)}, F32(), to + kLanes);
  }
};

}  // namespace N_AVX3
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace rarefy::cpu {
namespace N_AVX3 {

HWY_INLINE __m512 dot(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

// Line i of four rows of the next tile while dimensions [d, d + 32) of as many rows of this one are worked on.
template <Fetch kFetch>
HWY_INLINE void fetch_line_of_four(const void* const* next, int32_t d, int32_t i) {  // next [4] pointers to [head_dim] bf16
  if constexpr (kFetch == Fetch::run) {
    __builtin_prefetch(static_cast<const char*>(next[0]) + 8 * d + kLineBytes * i, 0, 2);
  } else if constexpr (kFetch == Fetch::turns) {
    __builtin_prefetch(static_cast<const char*>(next[i]) + 2 * d, 0, 2);
  }
}

// A row of q: head_dim high parts, then head_dim low parts. Fetches the rows at `next`.
template <int32_t kRows, bool kLow, Fetch kFetch>
HWY_INLINE void score_block_bf16(const uint16_t* HWY_RESTRICT q, int32_t head_dim,
                                 const void* const* keys,  // [4] pointers to [head_dim] bf16
                                 const void* const* next,  // [4] pointers, likewise
                                 float* HWY_RESTRICT scores) {
  __m512 sum[kRows][4];
  for (auto& row : sum) {
    for (auto& v : row) v = _mm512_setzero_ps();
  }
  for (int32_t d = 0; d < head_dim; d += 32) {
    __m512i key[4];
    for (int32_t t = 0; t < 4; ++t) key[t] = _mm512_loadu_si512(static_cast<const uint16_t*>(keys[t]) + d);
    for (int32_t r = 0; r < kRows; ++r) {
      for (int32_t i = 4 * r / kRows; i < 4 * (r + 1) / kRows; ++i) fetch_line_of_four<kFetch>(next, d, i);
      const __m512i high = _mm512_loadu_si512(q + 2 * r * head_dim + d);
      for (int32_t t = 0; t < 4; ++t) sum[r][t] = dot(sum[r][t], high, key[t]);
      if constexpr (kLow) {
        const __m512i low = _mm512_loadu_si512(q + (2 * r + 1) * head_dim + d);
        for (int32_t t = 0; t < 4; ++t) sum[r][t] = dot(sum[r][t], low, key[t]);
      }
    }
  }
  for (int32_t r = 0; r < kRows; ++r) {
    hn::StoreU(sum4(VF{sum[r][0]}, VF{sum[r][1]}, VF{sum[r][2]}, VF{sum[r][3]}), F32x4(), scores + r * kTileTokens);
  }
}

// As score_rows: the first rows of a tile fetch.
template <int32_t kRows, bool kLow, Fetch kFetch>
HWY_INLINE void score_rows_bf16(const Tile& tile, int32_t row, int32_t token,
                                float* HWY_RESTRICT scores) {  // [num_rows, kTileTokens] f32
  const auto* q =
      reinterpret_cast<const uint16_t*>(tile.q) + int64_t{2} * row * tile.head_dim;  // [kRows, 2, head_dim] bf16
  const void* const* keys = tile.keys + token;
  float* to = scores + row * kTileTokens + token;
  if (kFetch != Fetch::none && row == 0) {
    score_block_bf16<kRows, kLow, kFetch>(q, tile.head_dim, keys, tile.next_keys + token, to);
  } else {
    score_block_bf16<kRows, kLow, Fetch::none>(q, tile.head_dim, keys, keys, to);
  }
}

template <bool kLow, Fetch kFetch>
HWY_INLINE void score_tile_bf16(const Tile& tile, float* HWY_RESTRICT scores) {
  for (int32_t t = 0; t < tile.num_tokens; t += 4) {
    int32_t row = 0;
    for (; row + 4 <= tile.num_rows; row += 4) score_rows_bf16<4, kLow, kFetch>(tile, row, t, scores);
    for (; row < tile.num_rows; ++row) score_rows_bf16<1, kLow, kFetch>(tile, row, t, scores);
  }
}

template <>
void score_tile<DotRows>(const Tile& tile, float* HWY_RESTRICT scores) {
  with_fetch(begin_fetch<DotRows>(tile), [&]<Fetch kFetch>() {
    tile.q_is_bf16 ? score_tile_bf16<false, kFetch>(tile, scores) : score_tile_bf16<true, kFetch>(tile, scores);
  });
}

// Two tokens, 32 dimensions, interleaved.
struct TokenPair {
  __m512i low, high;
};
HWY_INLINE TokenPair load_pair(const void* first_row, const void* second_row, int32_t d) {
  const __m512i first = _mm512_loadu_si512(static_cast<const uint16_t*>(first_row) + d);
  const __m512i second = _mm512_loadu_si512(static_cast<const uint16_t*>(second_row) + d);
  return {_mm512_unpacklo_epi16(first, second), _mm512_unpackhi_epi16(first, second)};
}

// Line i of two rows of the next tile, `lines` of each, while dimensions from d on of two rows of this one, t and t + 1, are added.
template <Fetch kFetch>
HWY_INLINE void fetch_line_of_two(const Tile& tile, int32_t t, int32_t d, int32_t lines, int32_t i) {
  if constexpr (kFetch == Fetch::run) {
    const auto* run = static_cast<const char*>(tile.next_values[0]) + int64_t{2} * d * kTileTokens;
    __builtin_prefetch(run + kLineBytes * (t * lines + i), 0, 2);
  } else if constexpr (kFetch == Fetch::turns) {
    __builtin_prefetch(static_cast<const char*>(tile.next_values[t + i % 2]) + 2 * d + kLineBytes * (i / 2), 0, 2);
  }
}

// 64 dimensions of kRows rows (kHalf: 32); weights are pairs of bf16, one pair of tokens
// a word.
template <int32_t kRows, bool kHalf, Fetch kFetch>
HWY_INLINE void value_block_bf16(const Tile& tile, int32_t d, const uint32_t* HWY_RESTRICT weights,
                                 const float* HWY_RESTRICT rescale, float* HWY_RESTRICT sums) {
  constexpr int32_t kLines = kHalf ? 1 : 2;  // of a row
  // Four named accumulators a row: gcc 12 keeps arrays of arrays of them in memory.
  __m512 sum0[kRows], sum1[kRows], sum2[kRows], sum3[kRows];
  for (int32_t r = 0; r < kRows; ++r) {
    const __m512 factor = _mm512_set1_ps(rescale[r]);
    float* from = sums + r * tile.head_dim + d;
    sum0[r] = _mm512_mul_ps(factor, _mm512_load_ps(from));
    sum1[r] = _mm512_mul_ps(factor, _mm512_load_ps(from + 16));
    sum2[r] = kHalf ? _mm512_setzero_ps() : _mm512_mul_ps(factor, _mm512_load_ps(from + 32));
    sum3[r] = kHalf ? _mm512_setzero_ps() : _mm512_mul_ps(factor, _mm512_load_ps(from + 48));
  }
  for (int32_t t = 0; t < tile.num_tokens; t += 2) {
    const TokenPair a = load_pair(tile.values[t], tile.values[t + 1], d);
    const TokenPair b = kHalf ? a : load_pair(tile.values[t], tile.values[t + 1], d + 32);
    for (int32_t r = 0; r < kRows; ++r) {
      for (int32_t i = 2 * kLines * r / kRows; i < 2 * kLines * (r + 1) / kRows; ++i) {
        fetch_line_of_two<kFetch>(tile, t, d, kLines, i);
      }
      const __m512i weight = _mm512_set1_epi32(static_cast<int32_t>(weights[r * (kTileTokens / 2) + t / 2]));
      sum0[r] = dot(sum0[r], weight, a.low);
      sum1[r] = dot(sum1[r], weight, a.high);
      if constexpr (!kHalf) {
        sum2[r] = dot(sum2[r], weight, b.low);
        sum3[r] = dot(sum3[r], weight, b.high);
      }
    }
  }
  for (int32_t r = 0; r < kRows; ++r) {
    float* to = sums + r * tile.head_dim + d;
    _mm512_store_ps(to, sum0[r]);
    _mm512_store_ps(to + 16, sum1[r]);
    if constexpr (!kHalf) {
      _mm512_store_ps(to + 32, sum2[r]);
      _mm512_store_ps(to + 48, sum3[r]);
    }
  }
}

template <int32_t kRows, Fetch kFetch>
HWY_INLINE void value_rows_bf16(const Tile& tile, const uint32_t* weights, const float* rescale, float* sums) {
  int32_t d = 0;
  for (; d + 64 <= tile.head_dim; d += 64) value_block_bf16<kRows, false, kFetch>(tile, d, weights, rescale, sums);
  if (d < tile.head_dim) value_block_bf16<kRows, true, kFetch>(tile, d, weights, rescale, sums);
}

// The last token of an odd tile is paired with itself under weight 0, which soften gave to the entries past the end.
template <>
void value_tile<DotRows>(const Tile& tile, const float* weights, const float* rescale, float* sums, bool fetch) {
  HWY_ALIGN uint32_t pairs[kMaxTileRows * kTileTokens / 2];  // [num_rows, kTileTokens / 2] bits; two bf16 each
  for (int32_t i = 0; i < tile.num_rows * kTileTokens; i += 16) {
    // The weights are bf16 already: this drops zeros.
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(weights + i));
    _mm256_store_si256(reinterpret_cast<__m256i*>(pairs + i / 2), rounded);
  }
  Fetch how = fetch ? fetch_of<DotRows>(tile) : Fetch::none;  // by the first rows
  for (int32_t r = 0; r < tile.num_rows; how = Fetch::none) {
    const bool four = r + 4 <= tile.num_rows;
    with_fetch(how, [&]<Fetch kFetch>() {
      const uint32_t* weight = pairs + r * (kTileTokens / 2);
      float* sum = sums + r * tile.head_dim;
      four ? value_rows_bf16<4, kFetch>(tile, weight, rescale + r, sum)
           : value_rows_bf16<1, kFetch>(tile, weight, rescale + r, sum);
    });
    r += four ? 4 : 1;
  }
}

template <>
void norms_tile<DotRows>(const Tile& tile, float* HWY_RESTRICT norms) {
  for (int32_t t = 0; t < tile.num_tokens; t += 4) {
    __m512 sum[4];
    for (int32_t j = 0; j < 4; ++j) {
      sum[j] = _mm512_setzero_ps();
      for (int32_t d = 0; d < tile.head_dim; d += 32) {
        const __m512i value = _mm512_loadu_si512(static_cast<const uint16_t*>(tile.values[t + j]) + d);
        sum[j] = dot(sum[j], value, value);
      }
    }
    hn::StoreU(sum4(VF{sum[0]}, VF{sum[1]}, VF{sum[2]}, VF{sum[3]}), F32x4(), norms + t);
  }
}

#include "cpu/decode/tile_quad-inl.h"

void add_tile_bf16(const Tile& tile, const Partial& partial) {
  tile.is_quads() ? add_quads(tile, partial) : add_typed_tile<DotRows>(tile, partial);
}
void finish_row_bf16(const FinishRow& row) { finish_typed_row<DotRows>(row); }

void prepare_q_bf16(DType, const float* q, int32_t head_dim, float* prepared) {
  auto* parts = reinterpret_cast<uint16_t*>(prepared);  // [2, head_dim] bf16; high, low
  for (int32_t d = 0; d < head_dim; d += 16) {
    const __m512 value = _mm512_loadu_ps(q + d);
    const __m256i high = (__m256i)_mm512_cvtneps_pbh(value);
    const __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
    const __m256i low = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(value, back));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts + d), high);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts + head_dim + d), low);
  }
}

}  // namespace N_AVX3
}  // namespace rarefy::cpu
HWY_POP_ATTRIBUTES

#if RAREFY_HAS_AMX
#include "cpu/decode/tile_amx-inl.h"
#endif
