// Four query rows at once (groups of 4, 8, 12, 16): the common case of decode. Scores are kept by token, [kTileTokens, 4], so that a vector
// of eight holds those of two tokens and the four rows' maxima and sums need one exchange between its halves, where one row at a time needs
// three for each. Included by tile.cc for AVX2 only, inside its namespace; tile_quad-inl.h does the same for AVX512_BF16.

// What weights need to know of the tokens, four times each.
struct TokenFours {
  // [kTileTokens, 4] f32; log weight in units of ln 2, -inf past the end; where `biased`
  HWY_ALIGN float bias[4 * kTileTokens];
  bool biased = false;
};

// The tokens that were drawn, with an inclusion probability below 1, one after the other: the others, about half, add nothing to a variance.
struct DrawnTokens {
  int32_t count = 0;
  int32_t number[kTileTokens];               // [count] i32; of the tile's tokens
  const void* values[kTileTokens];           // [kTileTokens] pointers to rows; past `count` the last again
  HWY_ALIGN float missing[4 * kTileTokens];  // [count, 4] f32; 1 - inclusion probability, 0 past the end
  HWY_ALIGN float norms[4 * kTileTokens];    // [count, 4] f32; |v|^2; with a spread, else 0
};

// Numbers of so many tokens, in whole vectors: two tokens each.
constexpr int32_t padded_fours(int32_t num_tokens) { return (num_tokens + 1) / 2 * kLanes; }
HWY_INLINE VF swap_halves(VF v) { return hn::ConcatLowerUpper(F32(), v, v); }
HWY_INLINE VF four_twice(const float* from) { return hn::LoadDup128(F32(), from); }  // from [4] f32
HWY_INLINE void spread_to_fours(const float* HWY_RESTRICT from,                      // from [kTileTokens] f32
                                float* HWY_RESTRICT to) {                            // to [kTileTokens, 4] f32
  for (int32_t t = 0; t < kTileTokens; ++t) hn::Store(hn::Set(F32x4(), from[t]), F32x4(), to + 4 * t);
}

void describe_tokens(const Tile& tile, TokenFours& tokens) {
  tokens.biased = tile.log_weight != nullptr || tile.num_tokens < kTileTokens;
  if (!tokens.biased) return;
  HWY_ALIGN float bias[kTileTokens];  // [kTileTokens] f32
  for (int32_t t = 0; t < kTileTokens; ++t) {
    bias[t] = tile.log_weight != nullptr && t < tile.num_tokens ? tile.log_weight[t] * kLog2E : 0.0f;
    if (t >= tile.num_tokens) bias[t] = kNegInfinity;
  }
  spread_to_fours(bias, tokens.bias);
}

// Returns the tile of the drawn tokens' values. To be called when the tile's values are in the L1 cache: before, 30 of the 36 ns that a
// token's norm took were spent waiting for it.
template <class Rows>
Tile find_drawn(const Tile& tile, bool with_spread, DrawnTokens& drawn) {
  const F32 d;
  HWY_ALIGN float log_weight[kTileTokens] = {}, missing[kTileTokens], norms[kTileTokens] = {};  // [kTileTokens] f32
  for (int32_t t = 0; t < tile.num_tokens; ++t) {
    drawn.number[drawn.count] = t;
    drawn.values[drawn.count] = tile.values[t];
    log_weight[drawn.count] = tile.log_weight[t];
    drawn.count += tile.log_weight[t] != 0.0f ? 1 : 0;
  }
  for (int32_t t = drawn.count; t < kTileTokens; ++t) {
    drawn.values[t] = drawn.values[std::max(drawn.count - 1, 0)];
    log_weight[t] = 0.0f;
  }
  for (int32_t t = 0; t < kTileTokens; t += kLanes) {
    hn::Store(hn::Neg(hn::Expm1(d, hn::Neg(hn::Load(d, log_weight + t)))), d, missing + t);
  }
  Tile result = tile;
  result.values = drawn.values;
  result.num_tokens = drawn.count;
  if (with_spread) norms_tile<Rows>(result, norms);
  spread_to_fours(missing, drawn.missing);
  spread_to_fours(norms, drawn.norms);
  return result;
}

// scores [kTileTokens, 4] f32 of query rows q [4, head_dim] f32.
template <class Rows, Fetch kFetch>
HWY_INLINE void score_four(const Tile& tile, const float* HWY_RESTRICT q, float* HWY_RESTRICT scores) {
  for (int32_t t = 0; t < tile.num_tokens; t += 2) {
    VF sum[4][2];
    const void* const* next = kFetch == Fetch::none ? tile.keys + t : tile.next_keys + t;
    dot_block<Rows, 4, 2, kFetch>(q, tile.head_dim, tile.keys + t, next, sum);
    for (int32_t i = 0; i < 2; ++i) {
      hn::Store(sum4(sum[0][i], sum[1][i], sum[2][i], sum[3][i]), F32x4(), scores + 4 * (t + i));
    }
  }
}

// Scores to weights p, as soften() does for one row; `rescale` gets the factors for what was summed before.
HWY_INLINE void soften_four(const Tile& tile, const TokenFours& tokens,
                            float* HWY_RESTRICT scores,     // [kTileTokens, 4] f32
                            float* HWY_RESTRICT stats,      // [4, kRowStats] f32
                            float* HWY_RESTRICT rescale) {  // [4] f32
  const F32 d;
  const int32_t end = padded_fours(tile.num_tokens);
  const auto scale = hn::Set(d, tile.scale * kLog2E);
  const auto infinity = hn::Set(d, -kNegInfinity);
  HWY_ALIGN float old_maxima[4], maxima[4], totals[4];
  for (int32_t r = 0; r < 4; ++r) old_maxima[r] = stats[r * kRowStats];
  const auto old_maximum = four_twice(old_maxima);
  auto maximum = old_maximum;
  for (int32_t i = 0; i < end; i += kLanes) {
    auto s = hn::Mul(hn::Load(d, scores + i), scale);
    if (tokens.biased) s = hn::Add(s, hn::Load(d, tokens.bias + i));
    hn::Store(s, d, scores + i);
    maximum = hn::Max(maximum, s);
  }
  maximum = hn::Max(maximum, swap_halves(maximum));
  // Nothing but -inf so far: any finite reference turns it into weight 0.
  const auto reference = hn::IfThenZeroElse(hn::Eq(maximum, hn::Neg(infinity)), maximum);
  const auto factor = exp2_nonpositive(d, hn::Sub(old_maximum, reference));
  auto total = hn::Zero(d);
  for (int32_t i = 0; i < end; i += kLanes) {
    const auto p = exp2_nonpositive(d, hn::Sub(hn::Load(d, scores + i), reference));
    hn::Store(p, d, scores + i);
    total = hn::Add(total, p);
  }
  total = hn::Add(total, swap_halves(total));
  const hn::Half<F32> half;
  hn::Store(hn::LowerHalf(half, maximum), half, maxima);
  hn::Store(hn::LowerHalf(half, factor), half, rescale);
  hn::Store(hn::LowerHalf(half, total), half, totals);
  for (int32_t r = 0; r < 4; ++r) {
    stats[r * kRowStats] = maxima[r];
    stats[r * kRowStats + 1] = stats[r * kRowStats + 1] * rescale[r] + totals[r];
  }
}

// Weights p of all tokens to those of the drawn tokens in the variance, w = p^2 (1 - pi); rescale becomes its square.
HWY_INLINE void vary_four(const DrawnTokens& drawn,
                          float* HWY_RESTRICT weights,    // [kTileTokens, 4] f32
                          float* HWY_RESTRICT stats,      // [4, kRowStats] f32
                          float* HWY_RESTRICT rescale) {  // [4] f32
  const F32 d;
  const F32x4 d4;
  // Downwards in memory: drawn.number[i] >= i.
  for (int32_t i = 0; i < drawn.count; ++i) hn::Store(hn::Load(d4, weights + 4 * drawn.number[i]), d4, weights + 4 * i);
  auto sum = hn::Zero(d), norm_sum = hn::Zero(d);
  for (int32_t i = 0; i < padded_fours(drawn.count); i += kLanes) {
    const auto p = hn::Load(d, weights + i);
    const auto w = hn::Mul(hn::Mul(p, p), hn::Load(d, drawn.missing + i));
    hn::Store(w, d, weights + i);
    sum = hn::Add(sum, w);
    norm_sum = hn::MulAdd(w, hn::Load(d, drawn.norms + i), norm_sum);
  }
  HWY_ALIGN float sums[4], norm_sums[4];  // [4] f32
  const hn::Half<F32> half;
  hn::Store(hn::LowerHalf(half, hn::Add(sum, swap_halves(sum))), half, sums);
  hn::Store(hn::LowerHalf(half, hn::Add(norm_sum, swap_halves(norm_sum))), half, norm_sums);
  for (int32_t r = 0; r < 4; ++r) {
    rescale[r] *= rescale[r];
    stats[r * kRowStats + 2] = stats[r * kRowStats + 2] * rescale[r] + sums[r];
    stats[r * kRowStats + 3] = stats[r * kRowStats + 3] * rescale[r] + norm_sums[r];
  }
}

template <class Rows>
void add_fours(const Tile& tile, const Partial& partial) {
  TokenFours tokens;
  describe_tokens(tile, tokens);
  DrawnTokens drawn;
  Tile of_drawn;
  Fetch fetch = begin_fetch<Rows>(tile);
  for (int32_t row = 0; row < tile.num_rows; row += 4, fetch = Fetch::none) {
    HWY_ALIGN float weights[4 * kTileTokens];  // [kTileTokens, 4] f32; scores at first
    HWY_ALIGN float rescale[4];                // [4] f32
    const float* q = tile.q + row * tile.head_dim;
    float* stats = partial.stats + row * kRowStats;
    const int64_t first = int64_t{row} * tile.head_dim;
    with_fetch(fetch, [&]<Fetch kFetch>() HWY_ATTR { score_four<Rows, kFetch>(tile, q, weights); });
    soften_four(tile, tokens, weights, stats, rescale);
    value_rows_and_fetch<Rows, ByToken, 4>(tile, fetch, weights, rescale, partial.sum + first);
    if (!tile.with_variance) continue;
    if (row == 0) of_drawn = find_drawn<Rows>(tile, partial.spread != nullptr, drawn);
    vary_four(drawn, weights, stats, rescale);
    if (partial.spread != nullptr) {
      value_rows_and_fetch<Rows, ByToken, 4>(of_drawn, Fetch::none, weights, rescale, partial.spread + first);
    }
  }
}
