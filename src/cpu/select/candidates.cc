#include "cpu/select/candidates.h"

#include <algorithm>
#include <bit>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/select/candidates.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "cpu/simd/compress-inl.h"
#include "cpu/simd/exp-inl.h"
#include "cpu/simd/larger-inl.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::CappedTag<float, kCandidatePadding>;
using I32 = hn::Rebind<int32_t, F32>;
using U32 = hn::Rebind<uint32_t, F32>;
using F32Vec = hn::Vec<F32>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// rng.h counter_hash, one counter per lane.
HWY_INLINE hn::Vec<U32> counter_hashes(ListKey key, hn::Vec<U32> counters) {
  const U32 du;
  auto x = hn::Add(counters, hn::Set(du, key.add));
  x = hn::Xor(x, hn::ShiftRight<17>(x));
  x = hn::Mul(x, hn::Set(du, 0xed5ad4bbu));
  x = hn::Xor(x, hn::ShiftRight<11>(x));
  x = hn::Xor(x, hn::Set(du, key.mask));
  x = hn::Mul(x, hn::Set(du, 0xac4c1b51u));
  x = hn::Xor(x, hn::ShiftRight<15>(x));
  x = hn::Mul(x, hn::Set(du, 0x31848babu));
  return hn::Xor(x, hn::ShiftRight<14>(x));
}

// rng.h token_uniform, one token per lane.
HWY_INLINE F32Vec uniforms(ListKey key, hn::Vec<I32> token_ids) {
  const F32 df;
  const I32 di;
  const U32 du;
  const auto tokens = hn::BitCast(du, token_ids);
  static_assert(kPairDistance == 16);  // shifts by 4 and 5 are token_pair()
  const auto pairs = hn::Or(hn::ShiftLeft<4>(hn::ShiftRight<5>(tokens)), hn::And(tokens, hn::Set(du, kPairDistance - 1)));
  const auto pair = counter_hashes(key, pairs);
  const auto is_first = hn::Eq(hn::And(tokens, hn::Set(du, kPairDistance)), hn::Zero(du));
  const auto upper = hn::IfThenElse(is_first, hn::And(pair, hn::Set(du, 0xffff0000u)), hn::ShiftLeft<16>(pair));
  const auto own = counter_hashes(key, hn::Xor(tokens, hn::Set(du, 0x80000000u)));
  const auto hash = hn::Or(upper, hn::ShiftRight<16>(own));
  const auto units = hn::ConvertTo(df, hn::BitCast(di, hn::ShiftRight<1>(hash)));
  return hn::Mul(hn::Add(units, hn::Set(df, 0.5f)), hn::Set(df, 0x1p-31f));
}

// The constants of a filter in registers.
struct FilterVectors {
  explicit FilterVectors(const CandidateFilter& filter)
      : floor_add(hn::Set(F32(), filter.floor_add)),
        floor_min(hn::Set(F32(), filter.floor_min)),
        slope(hn::Set(F32(), filter.bound_slope)),
        offset(hn::Set(F32(), filter.bound_offset)),
        score_threshold(hn::Set(F32(), filter.score_threshold)),
        places(hn::Iota(I32(), 0)) {}
  F32Vec floor_add, floor_min, slope, offset, score_threshold;
  hn::Vec<I32> places;  // 0, 1, 2 ...
};

// The bits as a float, read as an integer and again as a float, are log2 u in units of 2^-23, from below: where they exceed the
// line, u exceeds the bound.
template <bool kWithFloor>
HWY_INLINE hn::Mask<F32> is_candidate(const FilterVectors& constants,
                                      hn::Vec<U32> upper_bits,  // rng.h upper_token_bits
                                      F32Vec score) {
  const F32 df;
  const I32 di;
  F32Vec mixed = score;
  if constexpr (kWithFloor) mixed = hn::Max(hn::Add(score, constants.floor_add), constants.floor_min);
  const F32Vec line = hn::MulAdd(mixed, constants.slope, constants.offset);
  const F32Vec log_u = hn::ConvertTo(df, hn::BitCast(di, hn::ConvertTo(df, hn::BitCast(di, upper_bits))));
  return hn::Or(hn::Le(log_u, line), hn::Gt(score, constants.score_threshold));
}

// Writes the candidates among the tokens of a vector to token_ids [16] i32 and kept_scores [16] f32, whole vectors at a time;
// returns how many there are. Compressing in registers and storing everything is faster than a compressing store, which is
// microcoded on some CPUs.
HWY_INLINE int32_t emit(hn::Mask<F32> chosen, hn::Vec<I32> tokens, F32Vec score, int32_t* token_ids, float* kept_scores) {
  const F32 df;
  const I32 di;
  const Compressor compressor(df, chosen);
  hn::StoreU(compressor.apply(di, tokens), di, token_ids);
  hn::StoreU(compressor.apply(df, score), df, kept_scores);
  return compressor.count();
}

// Tokens whose random bits come from the same hashes.
constexpr int32_t kPairTokens = 2 * static_cast<int32_t>(kPairDistance);
static_assert(kPairDistance % kCandidatePadding == 0);

// The candidates among kPairTokens tokens from a multiple of that on, but for those outside [first_token, end_token) with kPartly;
// `largest` is raised by their scores.
template <bool kWithFloor, bool kPartly>
HWY_INLINE int32_t filter_pairs(const FilterVectors& constants, ListKey key,
                                const float* scores,  // [kPairTokens] f32
                                int32_t base, int32_t first_token, int32_t end_token, F32Vec& largest,
                                int32_t* token_ids,    // [kPairTokens + kCandidatePadding] i32
                                float* kept_scores) {  // [kPairTokens + kCandidatePadding] f32
  const F32 df;
  const I32 di;
  const U32 du;
  constexpr auto kLanes = static_cast<int32_t>(hn::MaxLanes(df));
  constexpr auto kHashes = static_cast<int32_t>(kPairDistance) / kLanes;
  hn::Vec<U32> hashes[kHashes];
  for (int32_t i = 0; i < kHashes; ++i) {
    const uint32_t first = token_pair(static_cast<uint32_t>(base + i * kLanes));
    hashes[i] = counter_hashes(key, hn::Add(hn::BitCast(du, constants.places), hn::Set(du, first)));
  }
  int32_t count = 0;
  for (int32_t i = 0; i < 2 * kHashes; ++i) {
    const auto bits = i < kHashes ? hn::ShiftRight<16>(hashes[i]) : hn::And(hashes[i - kHashes], hn::Set(du, 0xffffu));
    const auto tokens = hn::Add(constants.places, hn::Set(di, base + i * kLanes));
    const F32Vec score = hn::LoadU(df, scores + i * kLanes);
    largest = hn::Max(score, largest);
    auto chosen = is_candidate<kWithFloor>(constants, bits, score);
    if constexpr (kPartly) {
      const auto inside = hn::And(hn::Gt(tokens, hn::Set(di, first_token - 1)), hn::Lt(tokens, hn::Set(di, end_token)));
      chosen = hn::And(chosen, hn::RebindMask(df, inside));
    }
    count += emit(chosen, tokens, score, token_ids + count, kept_scores + count);
  }
  return count;
}

template <bool kWithFloor>
FoundCandidates filter_with(const CandidateFilter& filter, const float* group_scores, int32_t first_token,
                            int32_t num_tokens, int32_t* token_ids, float* kept_scores) {
  const F32 df;
  const FilterVectors constants(filter);
  const int32_t end_token = first_token + num_tokens;
  auto largest = hn::Set(df, -kLargestScore);
  FoundCandidates found;
  for (int32_t base = first_token / kPairTokens * kPairTokens; base < end_token; base += kPairTokens) {
    int32_t* ids = token_ids + found.count;
    float* kept = kept_scores + found.count;
    if (base >= first_token && base + kPairTokens <= end_token) {
      found.count += filter_pairs<kWithFloor, false>(constants, filter.key, group_scores + (base - first_token), base,
                                                     first_token, end_token, largest, ids, kept);
      continue;
    }
    HWY_ALIGN float scores[kPairTokens];
    std::fill(scores, scores + kPairTokens, -kLargestScore);
    const int32_t first = std::max(base, first_token), end = std::min(base + kPairTokens, end_token);
    std::copy(group_scores + (first - first_token), group_scores + (end - first_token), scores + (first - base));
    found.count +=
        filter_pairs<kWithFloor, true>(constants, filter.key, scores, base, first_token, end_token, largest, ids, kept);
  }
  found.largest = hn::GetLane(hn::MaxOfLanes(df, largest));
  return found;
}

FoundCandidates filter_candidates_simd(const CandidateFilter& filter, const float* group_scores, int32_t first_token,
                                       int32_t num_tokens, int32_t* token_ids, float* kept_scores) {
  const bool with_floor = filter.floor_add != 0.0f || filter.floor_min > -kInfinity;
  const auto run = with_floor ? &filter_with<true> : &filter_with<false>;
  return run(filter, group_scores, first_token, num_tokens, token_ids, kept_scores);
}

void group_scores_simd(const float* scores, int64_t score_stride, int32_t num_queries, const float* log_sums,
                       int32_t num_tokens, float* out) {
  const F32 df;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  HWY_ALIGN float last[kCandidatePadding];
  for (int32_t token = 0; token < num_tokens; token += lanes) {
    F32Vec score = hn::Set(df, -kLargestScore);
    for (int32_t query = 0; query < num_queries; ++query) {
      const F32Vec value = hn::LoadU(df, scores + query * score_stride + token);
      score = larger(hn::Sub(value, hn::Set(df, log_sums[query])), score);
    }
    score = hn::Min(score, hn::Set(df, kLargestScore));
    if (token + lanes <= num_tokens) {
      hn::StoreU(score, df, out + token);
    } else {
      hn::Store(score, df, last);
      std::copy(last, last + (num_tokens - token), out + token);
    }
  }
}

void raise_maxima_simd(const float* scores, int64_t score_stride, int32_t num_queries, int32_t num_tokens, float* maxima) {
  const F32 df;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  for (int32_t query = 0; query < num_queries; ++query) {
    const float* row = scores + query * score_stride;  // [num_tokens] f32
    auto best = hn::Set(df, maxima[query]);
    int32_t token = 0;
    for (; token + lanes <= num_tokens; token += lanes) best = larger(hn::LoadU(df, row + token), best);
    maxima[query] = hn::GetLane(hn::MaxOfLanes(df, best));
    for (; token < num_tokens; ++token) maxima[query] = row[token] > maxima[query] ? row[token] : maxima[query];
  }
}

void random_keys_simd(ListKey key, const int32_t* token_ids, const float* scores, int32_t count, float* keys) {
  const F32 df;
  const I32 di;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  HWY_ALIGN int32_t last_ids[kCandidatePadding] = {};
  HWY_ALIGN float last_values[kCandidatePadding] = {};
  int32_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const F32Vec u = uniforms(key, hn::LoadU(di, token_ids + i));
    hn::StoreU(hn::Sub(hn::LoadU(df, scores + i), hn::Log(df, u)), df, keys + i);
  }
  if (i < count) {
    std::copy(token_ids + i, token_ids + count, last_ids);
    std::copy(scores + i, scores + count, last_values);
    const F32Vec u = uniforms(key, hn::Load(di, last_ids));
    hn::Store(hn::Sub(hn::Load(df, last_values), hn::Log(df, u)), df, last_values);
    std::copy(last_values, last_values + (count - i), keys + i);
  }
}

// Largest value; -inf for none.
HWY_INLINE float largest(const float* values, int32_t count) {
  const F32 df;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  auto best0 = hn::Set(df, -kInfinity), best1 = best0;
  int32_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    best0 = hn::Max(hn::LoadU(df, values + i), best0);
    best1 = hn::Max(hn::LoadU(df, values + i + lanes), best1);
  }
  float result = hn::GetLane(hn::MaxOfLanes(df, hn::Max(best0, best1)));
  for (; i < count; ++i) result = std::max(result, values[i]);
  return result;
}

// Largest negated value: minus the smallest.
HWY_INLINE float largest_negated(const float* values, int32_t count) {
  const F32 df;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  auto best = hn::Set(df, -kInfinity);
  int32_t i = 0;
  for (; i + lanes <= count; i += lanes) best = hn::Max(hn::Neg(hn::LoadU(df, values + i)), best);
  float result = hn::GetLane(hn::MaxOfLanes(df, best));
  for (; i < count; ++i) result = std::max(result, -values[i]);
  return result;
}

// exp(x), x <= 0.
HWY_INLINE F32Vec exp_nonpositive(F32Vec x) {
  const F32 df;
#if HWY_TARGET == HWY_SCALAR
  return hn::Exp(df, x);
#else
  return exp2_nonpositive(df, hn::Mul(x, hn::Set(df, kLog2E)));
#endif
}

// Sum of exp(values - shift), where shift is the largest value; keeps the terms where `terms` is given.
HWY_INLINE float sum_exp(const float* values, int32_t count, float shift, float* terms) {  // terms: [count] f32; nullable
  const F32 df;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  constexpr int32_t kChains = 4;  // sums that do not wait for each other
  const auto vshift = hn::Set(df, shift);
  F32Vec sums[kChains] = {hn::Zero(df), hn::Zero(df), hn::Zero(df), hn::Zero(df)};
  int32_t i = 0;
  const auto term = [&](int32_t at) HWY_ATTR {
    const F32Vec result = exp_nonpositive(hn::Sub(hn::LoadU(df, values + at), vshift));
    if (terms != nullptr) hn::StoreU(result, df, terms + at);
    return result;
  };
  for (; i + kChains * lanes <= count; i += kChains * lanes) {
    for (int32_t j = 0; j < kChains; ++j) sums[j] = hn::Add(sums[j], term(i + j * lanes));
  }
  for (; i + lanes <= count; i += lanes) sums[0] = hn::Add(sums[0], term(i));
  if (i < count) {
    HWY_ALIGN float last[kCandidatePadding] = {};
    std::copy(values + i, values + count, last);
    const auto valid = hn::FirstN(df, static_cast<size_t>(count - i));
    const F32Vec result = hn::IfThenElseZero(valid, exp_nonpositive(hn::Sub(hn::Load(df, last), vshift)));
    if (terms != nullptr) hn::StoreU(result, df, terms + i);
    sums[0] = hn::Add(sums[0], result);
  }
  return hn::GetLane(hn::SumOfLanes(df, hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]))));
}

float log_sum_exp_simd(const float* values, int32_t count) {
  const float shift = largest(values, count);
  if (!std::isfinite(shift)) return shift;
  return shift + std::log(sum_exp(values, count, shift, nullptr));
}

float expected_key_threshold_simd(const float* scores, int32_t count, float weight, float target, float* scratch) {
  const F32 df;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  if (weight * static_cast<float>(count) <= target) return -kInfinity;
  const float shift = largest(scores, count);
  if (!std::isfinite(shift)) return -kInfinity;
  const float total = sum_exp(scores, count, shift, scratch);

  // Newton's method for sum_i min(1, t exp(a_i - shift)) = goal: concave in t, so t approaches the root from below.
  const auto one = hn::Set(df, 1.0f);
  const float goal = target / weight;
  if (!(total > 0.0f) || !std::isfinite(goal / total)) return -kInfinity;
  float t = goal / total;  // the first step from t = 0
  for (int32_t step = 0; step < 30; ++step) {
    auto linear0 = hn::Zero(df), linear1 = hn::Zero(df), full0 = hn::Zero(df), full1 = hn::Zero(df);
    const auto vt = hn::Set(df, t);
    for (int32_t i = 0; i < count; i += 2 * lanes) {  // the scratch is padded with zeros
      const auto terms0 = hn::Load(df, scratch + i), terms1 = hn::Load(df, scratch + i + lanes);
      const auto below0 = hn::Lt(hn::Mul(terms0, vt), one), below1 = hn::Lt(hn::Mul(terms1, vt), one);
      linear0 = hn::Add(linear0, hn::IfThenElseZero(below0, terms0));
      linear1 = hn::Add(linear1, hn::IfThenElseZero(below1, terms1));
      full0 = hn::Add(full0, hn::IfThenZeroElse(below0, one));
      full1 = hn::Add(full1, hn::IfThenZeroElse(below1, one));
    }
    const float linear = hn::GetLane(hn::SumOfLanes(df, hn::Add(linear0, linear1)));
    const float full = hn::GetLane(hn::SumOfLanes(df, hn::Add(full0, full1)));
    if (full + linear * t >= 0.97f * goal) break;
    if (!(linear > 0.0f)) return -kInfinity;  // the other terms are too small for f32
    t = (goal - full) / linear;
    if (!std::isfinite(t)) return -kInfinity;
  }
  return shift - std::log(t);
}

// Floats as integers of the same order, and back.
HWY_INLINE int32_t ordered_bits(float value) {
  const auto bits = std::bit_cast<int32_t>(value);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
HWY_INLINE float from_ordered_bits(int32_t bits) { return std::bit_cast<float>(bits ^ ((bits >> 31) & 0x7fffffff)); }

constexpr int32_t kFewValues = 24;

// Keeps the values between two of a sample that most probably enclose the n-th largest; false when they do not, or when nothing
// would be gained. Then nothing has changed.
HWY_INLINE bool narrow(float* values, int32_t& count, int32_t& n) {
  constexpr int32_t kSample = 32, kSpread = 4;  // of the sample, on either side
  const F32 df;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  HWY_ALIGN float sample[kSample];  // [kSample] f32
  for (int32_t i = 0; i < kSample; ++i) sample[i] = values[static_cast<int64_t>(count) * i / kSample];
  // The two values by counting what is larger than each: a sort of 32 values mispredicts half of its branches.
  const auto rank = static_cast<int32_t>(static_cast<int64_t>(n) * kSample / count);
  float high = kInfinity, low = kInfinity;
  for (int32_t i = 0; i < kSample; ++i) {
    int32_t num_larger = 0;
    for (int32_t j = 0; j < kSample; j += lanes) {
      num_larger += static_cast<int32_t>(hn::CountTrue(df, hn::Gt(hn::Load(df, sample + j), hn::Set(df, sample[i]))));
    }
    high = num_larger <= rank - kSpread ? std::min(high, sample[i]) : high;
    low = num_larger <= rank + kSpread ? std::min(low, sample[i]) : low;
  }
  if (rank + kSpread >= kSample) low = -kInfinity;
  const auto vhigh = hn::Set(df, high), vlow = hn::Set(df, low);
  int32_t above = 0, at_least = 0;
  int32_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto value = hn::LoadU(df, values + i);
    above += static_cast<int32_t>(hn::CountTrue(df, hn::Gt(value, vhigh)));
    at_least += static_cast<int32_t>(hn::CountTrue(df, hn::Ge(value, vlow)));
  }
  for (int32_t j = i; j < count; ++j) above += values[j] > high ? 1 : 0, at_least += values[j] >= low ? 1 : 0;
  if (above >= n || at_least < n || at_least - above > count / 2) return false;
  int32_t kept = 0;
  for (i = 0; i < count; i += lanes) {
    const auto valid = hn::FirstN(df, static_cast<size_t>(count - i));
    const auto value = hn::LoadU(df, values + i);
    const auto chosen = hn::And(valid, hn::And(hn::Le(value, vhigh), hn::Ge(value, vlow)));
    const Compressor compressor(df, chosen);
    hn::StoreU(compressor.apply(df, value), df, values + kept);
    kept += compressor.count();
  }
  count = kept;
  n -= above;
  return true;
}

float nth_largest_simd(float* values, int32_t count, int32_t n) {
  const F32 df;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  constexpr int32_t kManyValues = 256;
  while (count > kManyValues && narrow(values, count, n)) {
  }
  int64_t low = ordered_bits(-largest_negated(values, count)), high = ordered_bits(largest(values, count));
  while (count > kFewValues && low < high) {
    // Values above `middle` and the others: both sides of the interval [low, high] shrink to half.
    const int64_t middle = low + (high - low) / 2;
    const auto cut = hn::Set(df, from_ordered_bits(static_cast<int32_t>(middle)));
    int32_t above = 0;
    for (int32_t i = 0; i < count; i += lanes) {
      const auto valid = hn::FirstN(df, static_cast<size_t>(count - i));
      above += static_cast<int32_t>(hn::CountTrue(df, hn::And(valid, hn::Gt(hn::LoadU(df, values + i), cut))));
    }
    const bool keep_above = above >= n;
    int32_t kept = 0;
    for (int32_t i = 0; i < count; i += lanes) {
      const auto valid = hn::FirstN(df, static_cast<size_t>(count - i));
      const auto value = hn::LoadU(df, values + i);
      const auto greater = hn::Gt(value, cut);
      const auto chosen = hn::And(valid, keep_above ? greater : hn::Not(greater));
      const Compressor compressor(df, chosen);
      hn::StoreU(compressor.apply(df, value), df, values + kept);
      kept += compressor.count();
    }
    count = kept;
    if (keep_above) {
      low = middle + 1;
    } else {
      high = middle;
      n -= above;
    }
  }
  if (low >= high) return from_ordered_bits(static_cast<int32_t>(low));
  std::nth_element(values, values + (n - 1), values + count, [](float a, float b) { return a > b; });
  return values[n - 1];
}

int32_t count_at_least_simd(const float* scores, int32_t count, float cut) {
  const F32 df;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  int32_t result = 0, i = 0;
  for (; i + lanes <= count; i += lanes) {
    result += static_cast<int32_t>(hn::CountTrue(df, hn::Ge(hn::LoadU(df, scores + i), hn::Set(df, cut))));
  }
  for (; i < count; ++i) result += scores[i] >= cut ? 1 : 0;
  return result;
}

void raise_at_least_simd(const float* scores, int32_t count, float cut, float* keys, float* mixed) {
  const F32 df;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  const auto infinity = hn::Set(df, kInfinity);
  int32_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto top = hn::Ge(hn::LoadU(df, scores + i), hn::Set(df, cut));
    hn::StoreU(hn::IfThenElse(top, infinity, hn::LoadU(df, keys + i)), df, keys + i);
    hn::StoreU(hn::IfThenElse(top, infinity, hn::LoadU(df, mixed + i)), df, mixed + i);
  }
  for (; i < count; ++i) {
    if (scores[i] >= cut) keys[i] = mixed[i] = kInfinity;
  }
}

int32_t take_above_simd(const int32_t* token_ids, const float* scores, const float* keys, int32_t count, float tau,
                        int32_t* out_ids, float* out_weights) {
  const F32 df;
  const I32 di;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  const auto vtau = hn::Set(df, tau);
  int32_t taken = 0, i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto chosen = hn::Gt(hn::LoadU(df, keys + i), vtau);
    const auto weight = hn::Max(hn::Sub(vtau, hn::LoadU(df, scores + i)), hn::Zero(df));
    const Compressor compressor(df, chosen);
    hn::StoreU(compressor.apply(di, hn::LoadU(di, token_ids + i)), di, out_ids + taken);
    hn::StoreU(compressor.apply(df, weight), df, out_weights + taken);
    taken += compressor.count();
  }
  for (; i < count; ++i) {
    if (!(keys[i] > tau)) continue;
    out_ids[taken] = token_ids[i];
    out_weights[taken++] = std::max(0.0f, tau - scores[i]);
  }
  return taken;
}

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rarefy::cpu {

HWY_EXPORT(filter_candidates_simd);
HWY_EXPORT(group_scores_simd);
HWY_EXPORT(raise_maxima_simd);
HWY_EXPORT(random_keys_simd);
HWY_EXPORT(log_sum_exp_simd);
HWY_EXPORT(expected_key_threshold_simd);
HWY_EXPORT(nth_largest_simd);
HWY_EXPORT(count_at_least_simd);
HWY_EXPORT(raise_at_least_simd);
HWY_EXPORT(take_above_simd);

namespace {
// As float bits, 2^x is at most 2^23 * (x + 127): the chord between powers of two lies above the curve. The filter knows u in
// units of 2^-16, from below.
constexpr double kBitsPerOctave = 0x1p23;
constexpr int32_t kBitsOfUnit = 16 << 23;
constexpr double kBitsOfOne = 127.0 * 0x1p23 + kBitsOfUnit;
constexpr double kOctavesPerNat = 1.4426950408889634;
// Slack in nats for the rounding of the bound (64 in 2^23 bits), of ln and of the keys themselves (2^-20 at 16).
double key_slack(float threshold) { return 1e-3 + 0x1p-20 * std::abs(double{threshold}); }
}  // namespace

void CandidateFilter::keep_keys_above(float threshold) {
  if (!(threshold > -kLargestScore)) return keep_uniforms_up_to(1.0f);
  bound_slope = static_cast<float>(kBitsPerOctave * kOctavesPerNat);
  bound_offset = static_cast<float>(kBitsOfOne - (threshold - key_slack(threshold)) * kOctavesPerNat * kBitsPerOctave);
}

void CandidateFilter::keep_uniforms_up_to(float threshold) {
  bound_slope = 0.0f;
  // Rounding to float may lose 64 in the bits: as many are added.
  const int32_t bits = threshold >= 1.0f ? 0x3f800000 : std::bit_cast<int32_t>(threshold) + 128;
  bound_offset = static_cast<float>(kBitsOfUnit + bits);
}

FoundCandidates filter_candidates(const CandidateFilter& filter, const float* group_scores, int32_t first_token,
                                  int32_t num_tokens, int32_t* token_ids, float* kept_scores) {
  return HWY_DYNAMIC_DISPATCH(filter_candidates_simd)(filter, group_scores, first_token, num_tokens, token_ids,
                                                      kept_scores);
}

void raise_maxima(const float* scores, int64_t score_stride, int32_t num_queries, int32_t num_tokens, float* maxima) {
  HWY_DYNAMIC_DISPATCH(raise_maxima_simd)(scores, score_stride, num_queries, num_tokens, maxima);
}

void group_scores(const float* scores, int64_t score_stride, int32_t num_queries, const float* log_sums, int32_t num_tokens,
                  float* out) {
  HWY_DYNAMIC_DISPATCH(group_scores_simd)(scores, score_stride, num_queries, log_sums, num_tokens, out);
}

void random_keys(ListKey key, const int32_t* token_ids, const float* scores, int32_t count, float* keys) {
  HWY_DYNAMIC_DISPATCH(random_keys_simd)(key, token_ids, scores, count, keys);
}

float nth_largest(float* values, int32_t count, int32_t n) {
  return HWY_DYNAMIC_DISPATCH(nth_largest_simd)(values, count, n);
}

int32_t count_at_least(const float* scores, int32_t count, float cut) {
  return HWY_DYNAMIC_DISPATCH(count_at_least_simd)(scores, count, cut);
}

void raise_at_least(const float* scores, int32_t count, float cut, float* keys, float* mixed) {
  HWY_DYNAMIC_DISPATCH(raise_at_least_simd)(scores, count, cut, keys, mixed);
}

int32_t take_above(const int32_t* token_ids, const float* scores, const float* keys, int32_t count, float tau,
                   int32_t* out_ids, float* out_weights) {
  return HWY_DYNAMIC_DISPATCH(take_above_simd)(token_ids, scores, keys, count, tau, out_ids, out_weights);
}

float log_sum_exp(const float* values, int32_t count) { return HWY_DYNAMIC_DISPATCH(log_sum_exp_simd)(values, count); }

float expected_key_threshold(const float* scores, int32_t count, float weight, float target, float* scratch) {
  std::fill_n(scratch + count, 2 * kCandidatePadding, 0.0f);
  return HWY_DYNAMIC_DISPATCH(expected_key_threshold_simd)(scores, count, weight, target, scratch);
}

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
