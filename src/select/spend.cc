#include "select/spend.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace rarefy {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Candidates aimed at, in tokens of the budget; enough that one pass in a few hundred has to be repeated.
constexpr float kMargin = 2.5f;
constexpr float kSpareTokens = 48.0f;
// The first repetition keeps about e^2 = 7 times as many candidates, the next one all of them.
constexpr float kLowerByNats = 2.0f;

bool random_part_is_flat(const SpendRule& rule) { return rule.spend == Spend::uniform; }

// The n-th largest value. Pre: 1 <= n <= values.size().
float nth_largest(const std::vector<float>& values, int32_t n, std::vector<float>& scratch) {
  scratch.resize(values.size() + cpu::kCandidatePadding);
  std::copy(values.begin(), values.end(), scratch.begin());
  return cpu::nth_largest(scratch.data(), static_cast<int32_t>(values.size()), n);
}

// Marks `count` values that are above `cut` or, by position, equal to it.
void take(const std::vector<float>& values, float cut, int32_t count, std::vector<uint8_t>& taken) {
  int32_t ties = count;
  for (float value : values) ties -= value > cut ? 1 : 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const bool tie = values[i] == cut && ties > 0;
    if (tie) --ties;
    if (tie || values[i] > cut) taken[i] = 1;
  }
}

// The scores that the random part goes by.
void mix_scores(const SpendRule& rule, const Candidates& candidates, std::vector<float>& mixed) {
  if (random_part_is_flat(rule)) {
    mixed.assign(static_cast<size_t>(candidates.count), 0.0f);
    return;
  }
  mixed.assign(candidates.scores, candidates.scores + candidates.count);
  if (rule.floor <= 0.0) return;
  const auto share = static_cast<float>(1.0 - rule.floor);
  const auto even = static_cast<float>(rule.floor / rule.num_tokens);
  for (float& score : mixed) {
    // Above 30 the smaller term is below half a unit in the last place, and exp stays finite.
    score = score > 30.0f ? std::max(score + std::log(share), std::log(even)) : std::log(share * std::exp(score) + even);
  }
}

}  // namespace

int32_t SpendRule::num_top() const {
  const int32_t total = std::min(budget, num_tokens);
  if (spend == Spend::priority) return 0;
  return spend == Spend::top_k ? total : (total + 1) / 2;
}

int32_t SpendRule::num_random() const { return std::min(budget, num_tokens) - num_top(); }

SpendThresholds SpendThresholds::guess(const SpendRule& rule, const float* sample, int32_t count, float weight,
                                       AlignedBuffer& scratch) {
  SpendThresholds result{-kInfinity, -kInfinity};
  if (rule.budget >= rule.num_tokens) return result;
  if (rule.num_top() == 0) {
    result.score = kInfinity;
  } else {
    const float target = (kMargin * static_cast<float>(rule.num_top()) + kSpareTokens) / weight;
    if (target < static_cast<float>(count)) {
      std::vector<float> order;
      result.score = nth_largest({sample, sample + count}, std::max(1, static_cast<int32_t>(target)), order);
    }
  }
  if (rule.num_random() == 0) {
    result.key = kInfinity;
  } else if (random_part_is_flat(rule)) {
    // -ln u > T for a share exp(-T) of all tokens.
    const float target = kMargin * static_cast<float>(rule.num_random()) + kSpareTokens;
    if (target < static_cast<float>(rule.num_tokens)) result.key = std::log(static_cast<float>(rule.num_tokens) / target);
  } else {
    // Tokens that the top part takes reach the random threshold too.
    const float target = kMargin * static_cast<float>(rule.budget + 1) + kSpareTokens;
    const size_t bytes = sizeof(float) * (static_cast<size_t>(count) + 2 * cpu::kCandidatePadding);
    result.key = cpu::expected_key_threshold(sample, count, weight, target, reinterpret_cast<float*>(scratch.reserve(bytes)));
  }
  return result;
}

void SpendThresholds::lower() {
  for (float* threshold : {&key, &score}) {
    if (*threshold == kInfinity) continue;  // not in use
    *threshold = lowered ? -kInfinity : *threshold - kLowerByNats;
  }
  lowered = true;
}

cpu::CandidateFilter SpendThresholds::filter(const SpendRule& rule) const {
  cpu::CandidateFilter result;
  result.key = rule.key;
  result.score_threshold = score;
  if (key == kInfinity) {
    result.keep_uniforms_up_to(0.0f);
  } else if (random_part_is_flat(rule)) {
    result.keep_uniforms_up_to(std::exp(-key) * 1.001f);
  } else {
    result.keep_keys_above(key);
    if (rule.floor > 0.0) {
      // ln(x + y) <= max(ln x, ln y) + ln 2
      result.floor_add = static_cast<float>(std::log(2.0 * (1.0 - rule.floor)));
      result.floor_min = static_cast<float>(std::log(2.0 * rule.floor / rule.num_tokens));
    }
  }
  return result;
}


bool spend(const SpendRule& rule, const SpendThresholds& thresholds, const Candidates& candidates, SpendScratch& scratch,
           int32_t* token_ids, float* log_weight) {
  const auto count = static_cast<size_t>(candidates.count);
  if (rule.budget >= rule.num_tokens) {
    if (candidates.count < rule.num_tokens) return false;
    std::copy_n(candidates.token_ids, count, token_ids);
    std::fill_n(log_weight, count, 0.0f);
    return true;
  }
  const int32_t num_top = rule.num_top(), num_random = rule.num_random();
  std::vector<uint8_t>& taken = scratch.taken;
  if (num_top > 0) taken.assign(count, 0);
  if (num_top > 0) {
    if (candidates.count < num_top) return false;
    scratch.mixed.assign(candidates.scores, candidates.scores + count);
    const float cut = nth_largest(scratch.mixed, num_top, scratch.order);
    if (!(cut > thresholds.score)) return false;
    take(scratch.mixed, cut, num_top, taken);
  }

  float tau = -kInfinity;
  if (num_random > 0) {
    if (candidates.count - num_top <= num_random) return false;
    mix_scores(rule, candidates, scratch.mixed);
    scratch.keys.resize(count);
    cpu::random_keys(rule.key, candidates.token_ids, scratch.mixed.data(), candidates.count, scratch.keys.data());
    if (num_top > 0) {
      for (size_t i = 0; i < count; ++i) {
        if (taken[i] != 0) scratch.keys[i] = -kInfinity;
      }
    }
    tau = nth_largest(scratch.keys, num_random + 1, scratch.order);
    if (!(tau > thresholds.key)) return false;
    if (num_top == 0) {
      scratch.order.resize(count + cpu::kCandidatePadding);
      scratch.ids.resize(count + cpu::kCandidatePadding);
      const int32_t above = cpu::take_above(candidates.token_ids, scratch.mixed.data(), scratch.keys.data(), candidates.count, tau,
                                            scratch.ids.data(), scratch.order.data());
      if (above == num_random) {  // no ties
        std::copy_n(scratch.ids.begin(), above, token_ids);
        std::copy_n(scratch.order.begin(), above, log_weight);
        return true;
      }
      taken.assign(count, 0);
    } else {
      scratch.top = taken;
    }
    take(scratch.keys, tau, num_random, taken);
  }

  const float flat_weight = random_part_is_flat(rule) && num_random > 0
                                ? std::log(static_cast<float>(rule.num_tokens - num_top) / static_cast<float>(num_random))
                                : 0.0f;
  int32_t written = 0;
  for (size_t i = 0; i < count; ++i) {
    if (taken[i] == 0) continue;
    token_ids[written] = candidates.token_ids[i];
    const bool top = num_random == 0 || (num_top > 0 && scratch.top[i] != 0);
    if (top) {
      log_weight[written] = 0.0f;
    } else {
      log_weight[written] = random_part_is_flat(rule) ? flat_weight : std::max(0.0f, tau - scratch.mixed[i]);
    }
    ++written;
  }
  return true;
}

}  // namespace rarefy
