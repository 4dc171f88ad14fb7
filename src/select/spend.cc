#include "select/spend.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace rarefy {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Candidates aimed at, in tokens of the budget; enough that one pass in a few hundred has to be repeated.
constexpr float kMargin = 3.0f;
constexpr float kSpareTokens = 48.0f;
// The first repetition keeps about e^2 = 7 times as many candidates, the next one all of them.
constexpr float kLowerByNats = 2.0f;

bool random_part_is_flat(const SpendRule& rule) { return rule.spend == Spend::uniform || rule.spend == Spend::vattention; }

// Counter of the one random number of a systematic sample; no token has it.
constexpr uint32_t kOffsetCounter = 0xffffffffu;

// The n-th largest value. Pre: 1 <= n <= count.
float nth_largest(const float* values, int32_t count, int32_t n, std::vector<float>& scratch) {  // values: [count] f32
  const auto padded = static_cast<size_t>(count) + cpu::kCandidatePadding;
  if (scratch.size() < padded) scratch.resize(padded);
  std::copy_n(values, count, scratch.begin());
  return cpu::nth_largest(scratch.data(), count, n);
}

// Gives `num` tokens with the best scores infinite keys and scores: they are drawn for certain and get weight 0. `cut` is the
// num-th largest score; those that equal it are taken by position.
void raise_top(const Candidates& candidates, float cut, int32_t num, std::vector<float>& keys, std::vector<float>& mixed) {
  if (cpu::count_at_least(candidates.scores, candidates.count, cut) == num) {  // no tie is left over
    cpu::raise_at_least(candidates.scores, candidates.count, cut, keys.data(), mixed.data());
    return;
  }
  int32_t above = 0;
  for (int32_t i = 0; i < candidates.count; ++i) above += candidates.scores[i] > cut ? 1 : 0;
  int32_t ties = num - above;
  for (int32_t i = 0; i < candidates.count; ++i) {
    const bool tie = candidates.scores[i] == cut && ties > 0;
    if (tie) --ties;
    if (tie || candidates.scores[i] > cut) keys[i] = mixed[i] = kInfinity;
  }
}

// Writes the `num` tokens with the largest keys: those above tau and, by position, some that equal it. Weights are
// max(0, tau - mixed).
void take(const Candidates& candidates, float tau, int32_t num, SpendScratch& scratch, int32_t* token_ids,
          float* log_weight) {
  const size_t padded = static_cast<size_t>(candidates.count) + cpu::kCandidatePadding;
  if (scratch.order.size() < padded) scratch.order.resize(padded);
  if (scratch.ids.size() < padded) scratch.ids.resize(padded);
  const int32_t above = cpu::take_above(candidates.token_ids, scratch.mixed.data(), scratch.keys.data(), candidates.count,
                                        tau, scratch.ids.data(), scratch.order.data());
  if (above == num) {
    std::copy_n(scratch.ids.begin(), num, token_ids);
    std::copy_n(scratch.order.begin(), num, log_weight);
    return;
  }
  int32_t ties = num - above, written = 0;
  for (int32_t i = 0; i < candidates.count; ++i) {
    const bool tie = scratch.keys[i] == tau && ties > 0;
    if (tie) --ties;
    if (!tie && !(scratch.keys[i] > tau)) continue;
    token_ids[written] = candidates.token_ids[i];
    log_weight[written++] = std::max(0.0f, tau - scratch.mixed[i]);
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
  if (spend == Spend::priority || spend == Spend::gumbel) return 0;
  if (spend == Spend::vattention) return std::min(total, num_heavy);
  return spend == Spend::top_k || spend == Spend::top_p ? total : (total + 1) / 2;
}

int32_t SpendRule::num_random() const { return std::min(budget, num_tokens) - num_top(); }

// Whether random keys pick the random part.
bool SpendRule::draws_keys() const { return num_random() > 0 && spend != Spend::systematic; }

SpendThresholds SpendThresholds::guess(const SpendRule& rule, const float* sample, int32_t count, float weight,
                                       AlignedBuffer& scratch) {
  SpendThresholds result{-kInfinity, -kInfinity};
  if (rule.spend == Spend::top_p) {  // a share of the sum over all tokens
    result.key = kInfinity;
    return result;
  }
  if (rule.budget >= rule.num_tokens) return result;
  if (rule.num_top() == 0) {
    result.score = kInfinity;
  } else {
    const float target = (kMargin * static_cast<float>(rule.num_top()) + kSpareTokens) / weight;
    if (target < static_cast<float>(count)) {
      std::vector<float> order;
      result.score = nth_largest(sample, count, std::max(1, static_cast<int32_t>(target)), order);
    }
  }
  if (!rule.draws_keys()) {
    result.key = kInfinity;
  } else if (random_part_is_flat(rule)) {
    // -ln u > T for a share exp(-T) of all tokens.
    const float target = kMargin * static_cast<float>(rule.num_random()) + kSpareTokens;
    if (target < static_cast<float>(rule.num_tokens)) result.key = std::log(static_cast<float>(rule.num_tokens) / target);
  } else {
    // Tokens that the top part takes reach the random threshold too.
    const float target = kMargin * static_cast<float>(rule.budget + 1) + kSpareTokens;
    const size_t bytes = sizeof(float) * (static_cast<size_t>(count) + 2 * cpu::kCandidatePadding);
    result.key =
        cpu::expected_key_threshold(sample, count, weight, target, reinterpret_cast<float*>(scratch.reserve(bytes)));
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

namespace {

// How many of the best scores hold more than p of the sum; `order` is scratch.
int32_t count_top_p(const SpendRule& rule, const Candidates& candidates, std::vector<float>& order) {
  double total = 0.0;
  for (int32_t i = 0; i < candidates.count; ++i) total += std::exp(double{candidates.scores[i]});
  order.assign(candidates.scores, candidates.scores + candidates.count);
  const int32_t most = rule.num_top();
  std::partial_sort(order.begin(), order.begin() + most, order.end(), std::greater<>());
  double sum = 0.0;
  for (int32_t taken = 0; taken < most; ++taken) {
    sum += std::exp(double{order[static_cast<size_t>(taken)]});
    if (sum > rule.top_p * total) return taken + 1;
  }
  return most;
}

// Adds the hits of a systematic sample to `num_top` tokens that are there already.
int32_t add_systematic(const SpendRule& rule, int32_t num_top, SpendScratch& scratch, int32_t* token_ids,
                       float* log_weight) {
  const int64_t num_tokens = rule.num_tokens, num_hits = rule.num_random();
  scratch.ids.assign(token_ids, token_ids + num_top);
  const auto offset = static_cast<int64_t>((uint64_t{token_hash(rule.key, kOffsetCounter)} * rule.num_tokens) >> 32);
  const auto weight = static_cast<float>(std::log(static_cast<double>(num_tokens) / static_cast<double>(num_hits)));
  int32_t written = 0, top = 0;
  const auto write_top_until = [&](int64_t end) {  // ids below `end`
    for (; top < num_top && scratch.ids[static_cast<size_t>(top)] < end; ++top) {
      token_ids[written] = scratch.ids[static_cast<size_t>(top)];
      log_weight[written++] = 0.0f;
    }
  };
  for (int64_t hit = 0; hit < num_hits; ++hit) {
    const int64_t token = rule.first_token + (offset + hit * num_tokens) / num_hits;
    write_top_until(token);
    if (top < num_top && scratch.ids[static_cast<size_t>(top)] == token) continue;
    token_ids[written] = static_cast<int32_t>(token);
    log_weight[written++] = weight;
  }
  write_top_until(int64_t{rule.first_token} + num_tokens);
  return written;
}

// Gumbel keys of all candidates. They are at most the keys that the filter went by: -ln(1 - u) >= u.
void gumbel_keys(const SpendRule& rule, const Candidates& candidates, SpendScratch& scratch) {
  for (int32_t i = 0; i < candidates.count; ++i) {
    const double u = token_uniform(rule.key, static_cast<uint32_t>(candidates.token_ids[i]));
    // In f32 the largest u is 1; its exponential variable is that of half a unit of the 31 bits below.
    const double exponential = u < 1.0 ? -std::log1p(-u) : 32.0 * std::log(2.0);
    scratch.keys[i] = static_cast<float>(scratch.mixed[i] - std::log(exponential));
  }
}

}  // namespace

int32_t spend(const SpendRule& rule, const SpendThresholds& thresholds, const Candidates& candidates, SpendScratch& scratch,
              int32_t* token_ids, float* log_weight) {
  const auto count = static_cast<size_t>(candidates.count);
  if (rule.budget >= rule.num_tokens && rule.spend != Spend::top_p) {
    if (candidates.count < rule.num_tokens) return kLowerThresholds;
    std::copy_n(candidates.token_ids, count, token_ids);
    std::fill_n(log_weight, count, 0.0f);
    return candidates.count;
  }
  const bool draws = rule.draws_keys();
  const int32_t num_top = rule.spend == Spend::top_p ? count_top_p(rule, candidates, scratch.order) : rule.num_top();
  const int32_t num_random = draws ? rule.num_random() : 0, num = num_top + num_random;
  if (candidates.count < num + (num_random > 0 ? 1 : 0)) return kLowerThresholds;
  float cut = -kInfinity;
  if (num_top > 0) {
    cut = nth_largest(candidates.scores, candidates.count, num_top, scratch.order);
    if (!(cut > thresholds.score)) return kLowerThresholds;
  }
  mix_scores(rule, candidates, scratch.mixed);
  scratch.keys.resize(count);
  float tau = -kInfinity;
  if (num_random > 0) {
    if (rule.spend == Spend::gumbel) {
      gumbel_keys(rule, candidates, scratch);
    } else {
      cpu::random_keys(rule.key, candidates.token_ids, scratch.mixed.data(), candidates.count, scratch.keys.data());
    }
    if (num_top > 0) raise_top(candidates, cut, num_top, scratch.keys, scratch.mixed);
    tau = nth_largest(scratch.keys.data(), candidates.count, num + 1, scratch.order);
    if (!(tau > thresholds.key)) return kLowerThresholds;
  } else {
    std::fill(scratch.keys.begin(), scratch.keys.end(), -kInfinity);
    if (num_top > 0) raise_top(candidates, cut, num_top, scratch.keys, scratch.mixed);
  }
  if (rule.spend == Spend::gumbel) {
    // -ln of the probability to exceed kappa; a difference above 40 is certain in f32 long before exp overflows.
    for (float& score : scratch.mixed) {
      const double excess = std::min(double{score} - tau, 40.0);
      score = tau + static_cast<float>(std::log(-std::expm1(-std::exp(excess))));
    }
  }
  take(candidates, tau, num, scratch, token_ids, log_weight);
  if (random_part_is_flat(rule) && num_random > 0) {
    // The number of draws is fixed, and so is the inclusion probability; tau only told the tokens apart.
    const float flat = std::log(static_cast<float>(rule.num_tokens - num_top) / static_cast<float>(num_random));
    for (int32_t i = 0; i < num; ++i) log_weight[i] = log_weight[i] > 0.0f ? flat : 0.0f;
  }
  return rule.spend == Spend::systematic ? add_systematic(rule, num, scratch, token_ids, log_weight) : num;
}

}  // namespace rarefy
