#include "cpu/select/candidates.h"

#include <algorithm>
#include <bit>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/select/candidates.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
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

// rng.h token_uniform, one token per lane.
HWY_INLINE F32Vec uniforms(ListKey key, hn::Vec<I32> tokens) {
  const F32 df;
  const I32 di;
  const U32 du;
  auto x = hn::Add(hn::BitCast(du, tokens), hn::Set(du, key.add));
  x = hn::Xor(x, hn::ShiftRight<17>(x));
  x = hn::Mul(x, hn::Set(du, 0xed5ad4bbu));
  x = hn::Xor(x, hn::ShiftRight<11>(x));
  x = hn::Xor(x, hn::Set(du, key.mask));
  x = hn::Mul(x, hn::Set(du, 0xac4c1b51u));
  x = hn::Xor(x, hn::ShiftRight<15>(x));
  x = hn::Mul(x, hn::Set(du, 0x31848babu));
  x = hn::Xor(x, hn::ShiftRight<14>(x));
  const auto value = hn::ConvertTo(df, hn::BitCast(di, hn::ShiftRight<1>(x)));
  return hn::Mul(hn::Add(value, hn::Set(df, 0.5f)), hn::Set(df, 0x1p-31f));
}

// max_h (s_h - L_h), kept within +-kLargestScore. With kMaxima the running maxima of s_h are raised.
template <bool kMaxima>
HWY_INLINE F32Vec group_score(const float* scores, int64_t stride, int32_t num_queries, const float* log_sums,
                              F32Vec* maxima, hn::Mask<F32> valid) {
  const F32 df;
  F32Vec best = hn::Set(df, -kInfinity);
  for (int32_t query = 0; query < num_queries; ++query) {
    const F32Vec score = hn::LoadU(df, scores + query * stride);
    if constexpr (kMaxima) {
      maxima[query] = hn::Max(hn::IfThenElse(valid, score, maxima[query]), maxima[query]);
    }
    best = hn::Max(hn::Sub(score, hn::Set(df, log_sums[query])), best);
  }
  const F32Vec lowest = hn::Set(df, -kLargestScore);
  best = hn::IfThenElse(hn::Gt(best, lowest), best, lowest);
  return hn::Min(best, hn::Set(df, kLargestScore));
}

constexpr int32_t kMaxQueries = 16;

int32_t filter_candidates_simd(const CandidateFilter& filter, const float* scores, int64_t score_stride, int32_t first_token,
                               int32_t num_tokens, float* maxima, int32_t* token_ids, float* kept_scores) {
  const F32 df;
  const I32 di;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  F32Vec best[kMaxQueries];
  for (int32_t query = 0; query < filter.num_queries; ++query) best[query] = hn::Set(df, maxima[query]);
  const auto floor_add = hn::Set(df, filter.floor_add), floor_min = hn::Set(df, filter.floor_min);
  const auto slope = hn::Set(df, filter.bound_slope), offset = hn::Set(df, filter.bound_offset);
  const auto one_bits = hn::Set(df, 0x3f800000);
  const auto score_threshold = hn::Set(df, filter.score_threshold);
  int32_t count = 0;
  for (int32_t token = 0; token < num_tokens; token += lanes) {
    const auto valid = hn::FirstN(df, static_cast<size_t>(num_tokens - token));
    const F32Vec score = group_score<true>(scores + token, score_stride, filter.num_queries, filter.log_sums, best, valid);
    const auto id = hn::Iota(di, first_token + token);
    const F32Vec mixed = hn::Max(hn::Add(score, floor_add), floor_min);
    const F32Vec bits = hn::Min(hn::Max(hn::Add(hn::Mul(mixed, slope), offset), hn::Zero(df)), one_bits);
    const F32Vec bound = hn::BitCast(df, hn::ConvertTo(di, bits));
    const auto chosen =
        hn::And(valid, hn::Or(hn::Le(uniforms(filter.key, id), bound), hn::Gt(score, score_threshold)));
    // Compress in registers, then store whole vectors: compressing stores are microcoded on some CPUs.
    hn::StoreU(hn::Compress(id, hn::RebindMask(di, chosen)), di, token_ids + count);
    hn::StoreU(hn::Compress(score, chosen), df, kept_scores + count);
    count += static_cast<int32_t>(hn::CountTrue(df, chosen));
  }
  for (int32_t query = 0; query < filter.num_queries; ++query) {
    maxima[query] = hn::GetLane(hn::MaxOfLanes(df, best[query]));
  }
  return count;
}

void group_scores_simd(const float* scores, int64_t score_stride, int32_t num_queries, const float* log_sums,
                       int32_t num_tokens, float* out) {
  const F32 df;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  HWY_ALIGN float last[kCandidatePadding];
  for (int32_t token = 0; token < num_tokens; token += lanes) {
    const auto valid = hn::FirstN(df, static_cast<size_t>(num_tokens - token));
    const F32Vec score = group_score<false>(scores + token, score_stride, num_queries, log_sums, nullptr, valid);
    if (token + lanes <= num_tokens) {
      hn::StoreU(score, df, out + token);
    } else {
      hn::Store(score, df, last);
      std::copy(last, last + (num_tokens - token), out + token);
    }
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

// Largest value; kLowest for none.
HWY_INLINE float largest(const float* values, int32_t count) {
  float result = -kInfinity;
  for (int32_t i = 0; i < count; ++i) result = std::max(result, values[i]);
  return result;
}

// sum_i min(limit, exp(values_i - shift)).
HWY_INLINE float sum_exp(const float* values, int32_t count, float shift, float limit) {
  const F32 df;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  const auto vshift = hn::Set(df, shift), vlimit = hn::Set(df, limit);
  auto sum = hn::Zero(df);
  HWY_ALIGN float last[kCandidatePadding];
  int32_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    sum = hn::Add(sum, hn::Min(vlimit, hn::Exp(df, hn::Sub(hn::LoadU(df, values + i), vshift))));
  }
  if (i < count) {
    std::fill(last, last + kCandidatePadding, -kInfinity);
    std::copy(values + i, values + count, last);
    const auto valid = hn::FirstN(df, static_cast<size_t>(count - i));
    const auto terms = hn::Min(vlimit, hn::Exp(df, hn::Sub(hn::Load(df, last), vshift)));
    sum = hn::Add(sum, hn::IfThenElseZero(valid, terms));
  }
  return hn::GetLane(hn::SumOfLanes(df, sum));
}

float log_sum_exp_simd(const float* values, int32_t count) {
  const float shift = largest(values, count);
  if (!std::isfinite(shift)) return shift;
  return shift + std::log(sum_exp(values, count, shift, kInfinity));
}

float expected_key_threshold_simd(const float* scores, int32_t count, float weight, float target) {
  // At T = largest + 25 at most e^-25 of a token per token is expected; at T = smallest all are.
  float low = largest(scores, count), high = low + 25.0f;
  while (low > -kLargestScore && weight * sum_exp(scores, count, low, 1.0f) < target) {
    high = low;
    low -= 4.0f;
    if (weight * static_cast<float>(count) <= target) return -kInfinity;
    if (high - largest(scores, count) < -200.0f) return -kInfinity;
  }
  for (int32_t step = 0; step < 10; ++step) {
    const float middle = 0.5f * (low + high);
    (weight * sum_exp(scores, count, middle, 1.0f) < target ? high : low) = middle;
  }
  return low;
}

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rarefy::cpu {

HWY_EXPORT(filter_candidates_simd);
HWY_EXPORT(group_scores_simd);
HWY_EXPORT(random_keys_simd);
HWY_EXPORT(log_sum_exp_simd);
HWY_EXPORT(expected_key_threshold_simd);

namespace {
// As float bits, 2^x is at most 2^23 * (x + 127): the chord between powers of two lies above the curve.
constexpr double kBitsPerOctave = 0x1p23;
constexpr double kBitsOfOne = 127.0 * 0x1p23;
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
  bound_offset = threshold >= 1.0f ? 0x3f800000 : static_cast<float>(std::bit_cast<int32_t>(threshold) + 128);
}

int32_t filter_candidates(const CandidateFilter& filter, const float* scores, int64_t score_stride, int32_t first_token,
                          int32_t num_tokens, float* maxima, int32_t* token_ids, float* group_scores_out) {
  return HWY_DYNAMIC_DISPATCH(filter_candidates_simd)(filter, scores, score_stride, first_token, num_tokens, maxima, token_ids,
                                                      group_scores_out);
}

void group_scores(const float* scores, int64_t score_stride, int32_t num_queries, const float* log_sums, int32_t num_tokens,
                  float* out) {
  HWY_DYNAMIC_DISPATCH(group_scores_simd)(scores, score_stride, num_queries, log_sums, num_tokens, out);
}

void random_keys(ListKey key, const int32_t* token_ids, const float* scores, int32_t count, float* keys) {
  HWY_DYNAMIC_DISPATCH(random_keys_simd)(key, token_ids, scores, count, keys);
}

float log_sum_exp(const float* values, int32_t count) { return HWY_DYNAMIC_DISPATCH(log_sum_exp_simd)(values, count); }

float expected_key_threshold(const float* scores, int32_t count, float weight, float target) {
  return HWY_DYNAMIC_DISPATCH(expected_key_threshold_simd)(scores, count, weight, target);
}

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
