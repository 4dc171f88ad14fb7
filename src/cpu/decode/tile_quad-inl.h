// Four query rows of a bf16 cache at once (groups of 4, 8, 12, 16): the common case of decode, and at head_dim 128 the one
// where arithmetic, not memory, is the limit on a fast machine. Scores, weights and running maxima of the four rows share
// vectors, lane t of 128-bit block r being token t of row r, so that reductions cost a quarter of what single rows cost: 60
// instead of 80 cycles per token and KV head on Zen 4. Included by tile_bf16-inl.h, inside its namespace and attributes.

constexpr int32_t kQuadBlocks = kTileTokens / 4;

// Lane i of every block to all lanes of the block.
template <int kLane>
HWY_INLINE __m512 spread_lane(__m512 v) {
  return _mm512_permute_ps(v, kLane * 0x55);
}
HWY_INLINE __m512 block_max(__m512 v) {
  v = _mm512_max_ps(v, _mm512_permute_ps(v, 0xb1));
  return _mm512_max_ps(v, _mm512_permute_ps(v, 0x4e));
}
HWY_INLINE __m512 block_sum(__m512 v) {
  v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xb1));
  return _mm512_add_ps(v, _mm512_permute_ps(v, 0x4e));
}
HWY_INLINE __m512 load_tokens(const float* from) { return _mm512_broadcast_f32x4(_mm_load_ps(from)); }  // from [4] f32

// Sum of the four blocks of v0 in block 0, of v1 in block 1, ...
HWY_INLINE __m512 sum_blocks(__m512 v0, __m512 v1, __m512 v2, __m512 v3) {
  const __m512 v01 = _mm512_add_ps(_mm512_shuffle_f32x4(v0, v1, 0x44), _mm512_shuffle_f32x4(v0, v1, 0xee));
  const __m512 v23 = _mm512_add_ps(_mm512_shuffle_f32x4(v2, v3, 0x44), _mm512_shuffle_f32x4(v2, v3, 0xee));
  return _mm512_add_ps(_mm512_shuffle_f32x4(v01, v23, 0x88), _mm512_shuffle_f32x4(v01, v23, 0xdd));
}

// Within every block: sum of the lanes of v0 in lane 0, of v1 in lane 1, ...
HWY_INLINE __m512 sum_lanes(__m512 v0, __m512 v1, __m512 v2, __m512 v3) {
  const __m512 v01 = _mm512_add_ps(_mm512_unpacklo_ps(v0, v1), _mm512_unpackhi_ps(v0, v1));
  const __m512 v23 = _mm512_add_ps(_mm512_unpacklo_ps(v2, v3), _mm512_unpackhi_ps(v2, v3));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(v01), _mm512_castps_pd(v23));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(v01), _mm512_castps_pd(v23));
  return _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
}

// Lines of scattered rows of 256 bytes are loaded out of order. In order, the L1 prefetchers see a stream as well and fetch the lines
// behind the row, which nobody reads: sparse decode at 50x on two cores of a Zen 4 took 210 us in order, 172 in this one.
constexpr int32_t kScatteredOrder[] = {64, 0, 96, 32};  // of 128 dimensions

// scores [kTileTokens / 4, 4, 4] f32: token block, row, token. kScattered: head_dim is a multiple of 128.
template <bool kLow, bool kScattered, Fetch kFetch>
HWY_INLINE void score_quad(const Tile& tile, const uint16_t* HWY_RESTRICT q,  // q [4, 2, head_dim] bits
                           float* HWY_RESTRICT scores) {
  for (int32_t t = 0; t < tile.num_tokens; t += 4) {
    const void* const* next = kFetch == Fetch::none ? nullptr : tile.next_keys + t;  // [4] pointers
    __m512 sum[4][4];
    for (auto& row : sum) {
      for (auto& v : row) v = _mm512_setzero_ps();
    }
    const auto add_line = [&](int32_t d) __attribute__((always_inline)) {
      __m512i key[4];
      for (int32_t j = 0; j < 4; ++j) key[j] = _mm512_loadu_si512(static_cast<const uint16_t*>(tile.keys[t + j]) + d);
      for (int32_t r = 0; r < 4; ++r) {
        fetch_line_of_four<kFetch>(next, d, r);
        const __m512i high = _mm512_loadu_si512(q + 2 * r * tile.head_dim + d);
        for (int32_t j = 0; j < 4; ++j) sum[r][j] = dot(sum[r][j], high, key[j]);
        if constexpr (kLow) {
          const __m512i low = _mm512_loadu_si512(q + (2 * r + 1) * tile.head_dim + d);
          for (int32_t j = 0; j < 4; ++j) sum[r][j] = dot(sum[r][j], low, key[j]);
        }
      }
    };
    if constexpr (kScattered) {
      for (int32_t d = 0; d < tile.head_dim; d += 128) {
#pragma GCC unroll 4
        for (int32_t i = 0; i < 4; ++i) add_line(d + kScatteredOrder[i]);
      }
    } else {
      for (int32_t d = 0; d < tile.head_dim; d += 32) add_line(d);
    }
    const __m512 rows = sum_blocks(
        sum_lanes(sum[0][0], sum[0][1], sum[0][2], sum[0][3]), sum_lanes(sum[1][0], sum[1][1], sum[1][2], sum[1][3]),
        sum_lanes(sum[2][0], sum[2][1], sum[2][2], sum[2][3]), sum_lanes(sum[3][0], sum[3][1], sum[3][2], sum[3][3]));
    _mm512_store_ps(scores + 4 * t, rows);
  }
}

// Rounds to bf16: the packed pairs go to `pairs` [4, 2] bits, and the rounded values back.
HWY_INLINE __m512 store_weights(__m512 weights, uint32_t* HWY_RESTRICT pairs) {
  const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(weights);
  _mm256_store_si256(reinterpret_cast<__m256i*>(pairs), rounded);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
}

// What add_quad keeps of the tokens, beside the rows. `bias` is the log weight in units of ln 2, -inf past the end.
struct QuadTokens {
  alignas(64) float bias[kTileTokens];     // [kTileTokens] f32
  alignas(64) float sampled[kTileTokens];  // [kTileTokens] f32; 1 - inclusion probability; with_variance only
  alignas(64) float norms[kTileTokens];    // [kTileTokens] f32; |v|^2; with a spread only
};

// sums[r][...] = sums[r][...] * rescale[4 r] + sum_t weight[r][t] * values[t][...] for four rows.
// Meanwhile the next tile's values are fetched.
template <Fetch kFetch>
HWY_INLINE void value_quad(const Tile& tile, const uint32_t* HWY_RESTRICT weights,  // weights [kTileTokens / 4, 4, 2] bits
                           const float* HWY_RESTRICT rescale,                       // rescale [4, 4] f32
                           float* HWY_RESTRICT sums) {                              // sums [4, head_dim] f32
  for (int32_t d = 0; d < tile.head_dim; d += 64) {
    const bool half = d + 32 == tile.head_dim;  // the upper half is then computed from the lower one and dropped
    __m512 sum0[4], sum1[4], sum2[4], sum3[4];
    for (int32_t r = 0; r < 4; ++r) {
      const __m512 factor = _mm512_set1_ps(rescale[4 * r]);
      const float* from = sums + r * tile.head_dim + d;
      const int32_t upper = half ? 0 : 32;
      sum0[r] = _mm512_mul_ps(factor, _mm512_load_ps(from));
      sum1[r] = _mm512_mul_ps(factor, _mm512_load_ps(from + 16));
      sum2[r] = _mm512_mul_ps(factor, _mm512_load_ps(from + upper));
      sum3[r] = _mm512_mul_ps(factor, _mm512_load_ps(from + upper + 16));
    }
    const int32_t upper = half ? d : d + 32;
    for (int32_t t = 0; t < tile.num_tokens; t += 2) {
      const TokenPair a = load_pair(tile.values[t], tile.values[t + 1], d);
      const TokenPair b = load_pair(tile.values[t], tile.values[t + 1], upper);
      const uint32_t* word = weights + t / 4 * 8 + t / 2 % 2;
      for (int32_t r = 0; r < 4; ++r) {
        if (r < 2 || !half) fetch_line_of_two<kFetch>(tile, t, d, half ? 1 : 2, r);
        const __m512i weight = _mm512_set1_epi32(static_cast<int32_t>(word[2 * r]));
        sum0[r] = dot(sum0[r], weight, a.low);
        sum1[r] = dot(sum1[r], weight, a.high);
        sum2[r] = dot(sum2[r], weight, b.low);
        sum3[r] = dot(sum3[r], weight, b.high);
      }
    }
    for (int32_t r = 0; r < 4; ++r) {
      float* to = sums + r * tile.head_dim + d;
      _mm512_store_ps(to, sum0[r]);
      _mm512_store_ps(to + 16, sum1[r]);
      if (!half) {
        _mm512_store_ps(to + 32, sum2[r]);
        _mm512_store_ps(to + 48, sum3[r]);
      }
    }
  }
}

// The same bits for head_dim 128, two query rows at a time and whole rows of values: twice the interleaving, but values that
// follow one another in memory are then read from end to end, and the hardware's prefetchers go along. Dense decode took 7.0
// instead of 5.8 ms with blocks of 64 dimensions, on one thread that could stream as much in 5.0; scattered rows gain nothing.
template <Fetch kFetch>
HWY_INLINE void value_quad_rows(const Tile& tile,
                                const uint32_t* HWY_RESTRICT weights,  // weights [kTileTokens / 4, 4, 2] bits
                                const float* HWY_RESTRICT rescale,     // rescale [4, 4] f32
                                float* HWY_RESTRICT sums) {            // sums [4, 128] f32
  constexpr int32_t kDim = 128, kVectors = kDim / 16;
  for (int32_t r = 0; r < 4; r += 2) {
    float* to = sums + r * kDim;
    const __m512 factor0 = _mm512_set1_ps(rescale[4 * r]), factor1 = _mm512_set1_ps(rescale[4 * r + 4]);
    __m512 sum0[kVectors], sum1[kVectors];
#pragma GCC unroll 8
    for (int32_t i = 0; i < kVectors; ++i) {
      sum0[i] = _mm512_mul_ps(factor0, _mm512_load_ps(to + 16 * i));
      sum1[i] = _mm512_mul_ps(factor1, _mm512_load_ps(to + kDim + 16 * i));
    }
    for (int32_t t = 0; t < tile.num_tokens; t += 2) {
      const int32_t row = t / 2 + r * (kTileTokens / 4);  // of the next tile, four lines
      const uint32_t* word = weights + t / 4 * 8 + t / 2 % 2 + 2 * r;
      const __m512i weight0 = _mm512_set1_epi32(static_cast<int32_t>(word[0]));
      const __m512i weight1 = _mm512_set1_epi32(static_cast<int32_t>(word[2]));
#pragma GCC unroll 4
      for (int32_t i = 0; i < kVectors; i += 2) {
        if constexpr (kFetch != Fetch::none)
          fetch_line_of_four<kFetch>(tile.next_values + row / 4 * 4, row % 4 * 32, i / 2);
        const TokenPair value = load_pair(tile.values[t], tile.values[t + 1], 16 * i);
        sum0[i] = dot(sum0[i], weight0, value.low);
        sum1[i] = dot(sum1[i], weight1, value.low);
        sum0[i + 1] = dot(sum0[i + 1], weight0, value.high);
        sum1[i + 1] = dot(sum1[i + 1], weight1, value.high);
      }
    }
#pragma GCC unroll 8
    for (int32_t i = 0; i < kVectors; ++i) {
      _mm512_store_ps(to + 16 * i, sum0[i]);
      _mm512_store_ps(to + kDim + 16 * i, sum1[i]);
    }
  }
}

// Scores of four rows to weights: `scores` [kTileTokens / 4, 4, 4] f32 becomes p as rounded, its bits go to `pairs`
// [kTileTokens / 4, 4, 2]. Returns the factor for what was summed before, in all lanes of its row's block; `stats` is brought up to date.
HWY_INLINE __m512 soften_quad(const Tile& tile, const QuadTokens& tokens, float* HWY_RESTRICT scores,
                              uint32_t* HWY_RESTRICT pairs, __m512& stats) {
  const int32_t num_blocks = (tile.num_tokens + 3) / 4;
  const __m512 scale = _mm512_set1_ps(tile.scale * kLog2E);
  const __m512 old_maximum = spread_lane<0>(stats);
  __m512 maximum = old_maximum;
  for (int32_t i = 0; i < num_blocks; ++i) {
    const __m512 s = _mm512_add_ps(_mm512_mul_ps(_mm512_load_ps(scores + 16 * i), scale), load_tokens(tokens.bias + 4 * i));
    _mm512_store_ps(scores + 16 * i, s);
    maximum = _mm512_max_ps(s, maximum);
  }
  maximum = block_max(maximum);
  // Nothing but -inf so far: any finite reference turns it into weight 0.
  const __mmask16 none = _mm512_cmp_ps_mask(maximum, _mm512_set1_ps(kNegInfinity), _CMP_EQ_OQ);
  const __m512 reference = _mm512_mask_blend_ps(none, maximum, _mm512_setzero_ps());
  const __m512 factor = exp2_nonpositive(F32(), VF{_mm512_sub_ps(old_maximum, reference)}).raw;
  __m512 total = _mm512_setzero_ps();
  for (int32_t i = 0; i < num_blocks; ++i) {
    const __m512 p = exp2_nonpositive(F32(), VF{_mm512_sub_ps(_mm512_load_ps(scores + 16 * i), reference)}).raw;
    const __m512 rounded = store_weights(p, pairs + 8 * i);
    _mm512_store_ps(scores + 16 * i, rounded);
    total = _mm512_add_ps(total, rounded);
  }
  // Lanes of a row: maximum, sum p, sum w, sum w |v|^2.
  __m512 updated = _mm512_mask_mul_ps(maximum, 0x2222, stats, factor);
  updated = _mm512_mask_mul_ps(updated, 0xcccc, stats, _mm512_mul_ps(factor, factor));
  stats = _mm512_mask_add_ps(updated, 0x2222, updated, block_sum(total));
  return factor;
}

// Weights p to those of the variance, w = p^2 (1 - pi).
HWY_INLINE void vary_quad(const Tile& tile, const QuadTokens& tokens,
                          const float* HWY_RESTRICT scores,  // scores [kTileTokens / 4, 4, 4] f32; p
                          uint32_t* HWY_RESTRICT pairs,      // pairs [kTileTokens / 4, 4, 2] bits
                          __m512& stats) {
  __m512 sum = _mm512_setzero_ps(), norm_sum = _mm512_setzero_ps();
  for (int32_t i = 0; i < (tile.num_tokens + 3) / 4; ++i) {
    const __m512 p = _mm512_load_ps(scores + 16 * i);
    const __m512 w = store_weights(_mm512_mul_ps(_mm512_mul_ps(p, p), load_tokens(tokens.sampled + 4 * i)), pairs + 8 * i);
    sum = _mm512_add_ps(sum, w);
    norm_sum = _mm512_fmadd_ps(w, load_tokens(tokens.norms + 4 * i), norm_sum);
  }
  stats = _mm512_mask_add_ps(stats, 0x4444, stats, block_sum(sum));
  stats = _mm512_mask_add_ps(stats, 0x8888, stats, block_sum(norm_sum));
}

// The tile's part of rows [row, row + 4).
template <Fetch kFetch>
HWY_INLINE void add_quad(const Tile& tile, const Partial& partial, const QuadTokens& tokens, int32_t row) {
  alignas(64) float scores[4 * kTileTokens];                 // [kTileTokens / 4, 4, 4] f32; later p
  alignas(64) uint32_t pairs[2 * kTileTokens];               // [kTileTokens / 4, 4, 2] bits
  alignas(64) float rescale[16];                             // [4, 4] f32
  float* sums = partial.sum + int64_t{row} * tile.head_dim;  // [4, head_dim] f32
  const auto* q = reinterpret_cast<const uint16_t*>(tile.q) + int64_t{2} * row * tile.head_dim;
  if (tile.scattered && tile.head_dim % 128 == 0) {
    tile.q_is_bf16 ? score_quad<false, true, kFetch>(tile, q, scores) : score_quad<true, true, kFetch>(tile, q, scores);
  } else {
    tile.q_is_bf16 ? score_quad<false, false, kFetch>(tile, q, scores) : score_quad<true, false, kFetch>(tile, q, scores);
  }
  float* row_stats = partial.stats + row * kRowStats;  // [4, 4] f32: block r is row r's
  __m512 stats = _mm512_loadu_ps(row_stats);
  const __m512 factor = soften_quad(tile, tokens, scores, pairs, stats);
  _mm512_store_ps(rescale, factor);
  if (tile.head_dim == 128 && !tile.scattered) {
    value_quad_rows<kFetch>(tile, pairs, rescale, sums);
  } else {
    value_quad<kFetch>(tile, pairs, rescale, sums);
  }
  if (tile.with_variance) {
    vary_quad(tile, tokens, scores, pairs, stats);
    if (partial.spread != nullptr) {
      _mm512_store_ps(rescale, _mm512_mul_ps(factor, factor));
      value_quad<Fetch::none>(tile, pairs, rescale, partial.spread + int64_t{row} * tile.head_dim);
    }
  }
  _mm512_storeu_ps(row_stats, stats);
}

HWY_INLINE void load_tokens_of(const Tile& tile, bool with_norms, QuadTokens& tokens) {
  for (int32_t t = 0; t < kTileTokens; t += 16) {
    const int32_t here = std::clamp(tile.num_tokens - t, 0, 16);
    const auto inside = static_cast<__mmask16>((1u << here) - 1u);
    __m512 log_weight = _mm512_setzero_ps();
    if (tile.log_weight != nullptr) log_weight = _mm512_maskz_loadu_ps(inside, tile.log_weight + t);
    const __m512 log2_weight = _mm512_mul_ps(log_weight, _mm512_set1_ps(kLog2E));
    _mm512_store_ps(tokens.bias + t, _mm512_mask_blend_ps(inside, _mm512_set1_ps(kNegInfinity), log2_weight));
    _mm512_store_ps(tokens.sampled + t, log_weight);
    _mm512_store_ps(tokens.norms + t, _mm512_setzero_ps());
  }
  if (!tile.with_variance) return;
  const F32 d;
  for (int32_t t = 0; t < kTileTokens; t += kLanes) {
    hn::Store(hn::Neg(hn::Expm1(d, hn::Neg(hn::Load(d, tokens.sampled + t)))), d, tokens.sampled + t);
  }
  if (with_norms) norms_tile<DotRows>(tile, tokens.norms);
}

void add_quads(const Tile& tile, const Partial& partial) {
  QuadTokens tokens;
  load_tokens_of(tile, partial.spread != nullptr, tokens);
  with_fetch(begin_fetch<DotRows>(tile), [&]<Fetch kFetch>() { add_quad<kFetch>(tile, partial, tokens, 0); });
  for (int32_t row = 4; row < tile.num_rows; row += 4) add_quad<Fetch::none>(tile, partial, tokens, row);
}
