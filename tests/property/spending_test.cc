// Spending rules: equal to the double-precision reference, and statistically what they promise (unbiased sums, honest
// variance, less error than a uniform tail). Statistics use 1,000 seeds, and 10,000 in the long build of this file.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "ref/select.h"
#include "select/spend.h"

namespace rarefy {
namespace {

constexpr uint32_t kSeed = 77;

#ifdef RAREFY_LONG_TEST
constexpr int32_t kNumSeeds = 10000;
constexpr double kVarianceTolerance = 0.1;
#else
constexpr int32_t kNumSeeds = 1000;
constexpr double kVarianceTolerance = 0.3;  // the observed variance itself is known to 5 to 10 % then
#endif

struct Chosen {
  std::vector<int32_t> token_ids;
  std::vector<float> log_weight;
  int32_t passes = 0;
};

// What list_builder.cc does, on plain scores of one query.
class Spender {
 public:
  Spender(std::vector<float> scores, int32_t first_token) : scores_(std::move(scores)), first_token_(first_token) {
    const float zero = 0.0f;
    const auto count = static_cast<int32_t>(scores_.size());
    scores_.resize(scores_.size() + cpu::kCandidatePadding);  // vectors are read whole
    cpu::group_scores(scores_.data(), 0, 1, &zero, count, scores_.data());
    scores_.resize(static_cast<size_t>(count));
    for (size_t i = 0; i < scores_.size(); i += kSampleStep) sample_.push_back(scores_[i]);
    ids_.resize(scores_.size() + cpu::kCandidatePadding);
    kept_.resize(ids_.size());
    scores_.resize(scores_.size() + cpu::kCandidatePadding);  // vectors are read whole
  }
  int32_t num_tokens() const { return static_cast<int32_t>(scores_.size()) - cpu::kCandidatePadding; }

  void run(const SpendRule& rule, Chosen& chosen) {
    run(rule, SpendThresholds::guess(rule, sample_.data(), static_cast<int32_t>(sample_.size()), kSampleStep, order_),
        chosen);
  }
  void run(const SpendRule& rule, SpendThresholds thresholds, Chosen& chosen) {
    const auto capacity = static_cast<size_t>(std::min(rule.budget, rule.num_tokens));
    chosen.token_ids.resize(capacity);
    chosen.log_weight.resize(capacity);
    for (chosen.passes = 1;; ++chosen.passes) {
      const int32_t count = cpu::filter_candidates(thresholds.filter(rule), scores_.data(), first_token_, num_tokens(),
                                                   ids_.data(), kept_.data())
                                .count;
      const int32_t taken = spend(rule, thresholds, {ids_.data(), kept_.data(), count}, scratch_, chosen.token_ids.data(),
                                  chosen.log_weight.data());
      if (taken != kLowerThresholds) {
        chosen.token_ids.resize(static_cast<size_t>(taken));
        chosen.log_weight.resize(static_cast<size_t>(taken));
        return;
      }
      ASSERT_LT(chosen.passes, 4) << "thresholds of minus infinity settle everything";
      thresholds.lower();
    }
  }

 private:
  static constexpr int32_t kSampleStep = 4;
  std::vector<float> scores_, sample_, kept_;
  AlignedBuffer order_;
  std::vector<int32_t> ids_;
  int32_t first_token_;
  SpendScratch scratch_;
};

enum class Shape { flat, spike, heavy, normal, wide, clustered };
const char* to_string(Shape shape) {
  constexpr const char* kNames[] = {"flat", "single spike", "heavy tail", "normal", "wide", "clustered"};
  return kNames[static_cast<int>(shape)];
}

// Log weights of `count` tokens, normalised.
std::vector<double> log_weights(Shape shape, int32_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::exponential_distribution<double> exponential(1.0);
  std::normal_distribution<double> normal;
  std::vector<double> result(count, 0.0);
  if (shape == Shape::spike) result[count / 3] = std::log(static_cast<double>(count));
  if (shape == Shape::heavy) std::generate(result.begin(), result.end(), [&] { return 0.8 * exponential(random); });
  const double width = shape == Shape::wide ? 3.0 : 2.0;
  if (shape == Shape::normal || shape == Shape::wide)
    std::generate(result.begin(), result.end(), [&] { return width * normal(random); });
  if (shape == Shape::clustered) {  // runs of 64 tokens with a level of their own
    double level = 0.0;
    for (int32_t i = 0; i < count; ++i) {
      if (i % 64 == 0) level = 1.5 * normal(random);
      result[i] = level + 0.5 * normal(random);
    }
  }
  const double sum = ref::log_sum_exp(result.data(), count);
  for (double& value : result) value -= sum;
  return result;
}

std::vector<float> noisy(const std::vector<double>& weights, double noise, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<float> result;
  for (double value : weights) result.push_back(static_cast<float>(value + noise * normal(random)));
  return result;
}

ListKey key_of(uint64_t seed) { return make_list_key(seed, RngPurpose::select, 3, 1, 12345); }

constexpr Spend kSpends[] = {Spend::priority, Spend::top_k,      Spend::half,   Spend::uniform,
                             Spend::top_p,    Spend::systematic, Spend::gumbel, Spend::vattention};

bool is_flat(Spend spend) { return spend == Spend::uniform || spend == Spend::vattention || spend == Spend::systematic; }

SpendRule make_rule(Spend spend, int32_t budget, int32_t num_tokens, double floor, ListKey key, int32_t first_token = 0) {
  SpendRule rule{spend, budget, num_tokens, floor, key};
  rule.first_token = first_token;
  rule.num_heavy = 7;
  rule.top_p = 0.6;
  return rule;
}

// Only tokens whose key or score is within rounding of the cut may differ from the reference.
void expect_like_reference(const SpendRule& rule, const std::vector<float>& scores, int32_t first_token,
                           const Chosen& chosen) {
  ref::SpendProblem problem;
  problem.num_top = rule.num_top();
  problem.num_random = rule.num_random();
  problem.draw = rule.spend == Spend::gumbel       ? ref::Draw::gumbel
                 : rule.spend == Spend::systematic ? ref::Draw::systematic
                 : is_flat(rule.spend)             ? ref::Draw::flat
                                                   : ref::Draw::priority;
  if (rule.spend == Spend::top_p) problem.top_p = rule.top_p;
  problem.floor = rule.floor;
  problem.first_token = first_token;
  problem.key = rule.key;
  const auto expected = ref::spend(problem, {scores.begin(), scores.end()});
  ASSERT_EQ(chosen.token_ids.size(), expected.token_ids.size());
  EXPECT_TRUE(std::is_sorted(chosen.token_ids.begin(), chosen.token_ids.end()));
  EXPECT_EQ(std::adjacent_find(chosen.token_ids.begin(), chosen.token_ids.end()), chosen.token_ids.end()) << "taken twice";
  // f32 rounding of a key: of -ln u (at most 22.2, a few units), of the mixed score and of the sum.
  const double bound = 1e-5 + 0x1p-21 * std::abs(expected.tau);
  std::vector<int32_t> difference;
  std::set_symmetric_difference(chosen.token_ids.begin(), chosen.token_ids.end(), expected.token_ids.begin(),
                                expected.token_ids.end(), std::back_inserter(difference));
  for (int32_t token : difference)
    EXPECT_NEAR(expected.keys[token - first_token], expected.tau, bound) << "token " << token;
  for (size_t i = 0; i < chosen.token_ids.size(); ++i) {
    const auto found = std::lower_bound(expected.token_ids.begin(), expected.token_ids.end(), chosen.token_ids[i]);
    if (found == expected.token_ids.end() || *found != chosen.token_ids[i]) continue;
    EXPECT_NEAR(chosen.log_weight[i], expected.log_weight[found - expected.token_ids.begin()], 2 * bound);
    EXPECT_GE(chosen.log_weight[i], 0.0f);
  }
}

TEST(Spending, MatchesTheReference) {
  for (Shape shape : {Shape::flat, Shape::spike, Shape::heavy, Shape::normal}) {
    for (Spend spend_rule : kSpends) {
      for (int32_t num_tokens : {37, 1000, 5003}) {
        for (double floor : {0.0, 0.1}) {
          for (int32_t budget : {1, 2, 19, num_tokens / 2, num_tokens - 1, num_tokens, num_tokens + 5}) {
            SCOPED_TRACE(std::string(to_string(shape)) + " " + std::string(to_string(spend_rule)) +
                         " n=" + std::to_string(num_tokens) + " budget=" + std::to_string(budget) +
                         " floor=" + std::to_string(floor));
            const auto scores = noisy(log_weights(shape, num_tokens, kSeed), 0.5, kSeed + 1);
            Spender spender(scores, 4);
            Chosen chosen;
            const SpendRule rule = make_rule(spend_rule, budget, num_tokens, floor, key_of(budget), 4);
            spender.run(rule, chosen);
            expect_like_reference(rule, scores, 4, chosen);
          }
        }
      }
    }
  }
}

TEST(Spending, TiesGoToTheLowerToken) {
  std::vector<float> scores(100, -4.0f);
  scores[50] = -1.0f;
  Spender spender(scores, 10);
  Chosen chosen;
  spender.run(make_rule(Spend::top_k, 4, 100, 0.0, key_of(1), 10), chosen);
  EXPECT_EQ(chosen.token_ids, (std::vector<int32_t>{10, 11, 12, 60}));
}

// Whatever thresholds are guessed, the result is the same.
TEST(Spending, GuessesDoNotChangeTheResult) {
  const auto scores = noisy(log_weights(Shape::heavy, 3000, kSeed), 0.5, kSeed);
  Spender spender(scores, 0);
  for (Spend spend_rule : kSpends) {
    const SpendRule rule = make_rule(spend_rule, 100, 3000, 0.05, key_of(9));
    Chosen expected, chosen;
    spender.run(rule, expected);
    EXPECT_EQ(expected.passes, 1);
    for (float shift : {-5.0f, 0.5f, 3.0f, 30.0f}) {
      AlignedBuffer scratch;
      SpendThresholds thresholds = SpendThresholds::guess(rule, scores.data(), 3000, 1.0f, scratch);
      thresholds.key += shift;
      thresholds.score += shift;
      spender.run(rule, thresholds, chosen);
      EXPECT_EQ(chosen.token_ids, expected.token_ids) << to_string(spend_rule) << " " << shift;
      EXPECT_EQ(chosen.log_weight, expected.log_weight) << to_string(spend_rule) << " " << shift;
      if (shift > 1.0f && spend_rule != Spend::top_p) {
        EXPECT_GT(chosen.passes, 1);
      }
    }
  }
}

TEST(Spending, ScoresThatAreNotNumbersStayOut) {
  std::vector<float> scores(500, -6.0f);
  for (size_t i = 0; i < scores.size(); i += 3) scores[i] = std::numeric_limits<float>::quiet_NaN();
  scores[7] = std::numeric_limits<float>::infinity();
  for (Spend spend_rule : kSpends) {
    Spender spender(scores, 0);
    Chosen chosen;
    spender.run(make_rule(spend_rule, 40, 500, 0.0, key_of(2)), chosen);
    EXPECT_TRUE(std::binary_search(chosen.token_ids.begin(), chosen.token_ids.end(), 7));
    for (size_t i = 0; i < chosen.token_ids.size(); ++i) {
      EXPECT_TRUE(std::isfinite(chosen.log_weight[i]));
      if (!is_flat(spend_rule)) {
        EXPECT_NE(chosen.token_ids[i] % 3, 0) << to_string(spend_rule);
      }
    }
  }
}

struct Moments {
  double mean = 0.0, variance = 0.0;
};

Moments moments(const std::vector<double>& values) {
  Moments result;
  for (double value : values) result.mean += value / static_cast<double>(values.size());
  for (double value : values)
    result.variance += (value - result.mean) * (value - result.mean) / static_cast<double>(values.size() - 1);
  return result;
}

// A component of the values of `count` tokens.
std::vector<double> token_values(size_t count) {
  std::mt19937 random(kSeed + 5);
  std::normal_distribution<double> normal(0.3, 1.0);
  std::vector<double> result(count);
  std::generate(result.begin(), result.end(), [&] { return normal(random); });
  return result;
}

struct Statistics {
  Moments numerator, denominator;
  double estimated_variance = 0.0;  // mean of sum c^2 (1 - pi) of the denominator
  double ratio_error = 0.0;         // root mean square of numerator / denominator against the truth
  double exact_numerator = 0.0, exact_denominator = 0.0;
};

Statistics simulate(Spend spend_rule, const std::vector<double>& weights, const std::vector<float>& scores, int32_t budget,
                    double floor, int32_t num_seeds) {
  const auto num_tokens = static_cast<int32_t>(weights.size());
  const std::vector<double> value = token_values(weights.size());
  std::vector<double> mass;
  Statistics result;
  for (double weight : weights) {
    mass.push_back(std::exp(weight));
    result.exact_numerator += mass.back() * value[mass.size() - 1];
    result.exact_denominator += mass.back();
  }
  Spender spender(scores, 0);
  Chosen chosen;
  std::vector<double> numerators, denominators;
  for (int32_t seed = 0; seed < num_seeds; ++seed) {
    spender.run(make_rule(spend_rule, budget, num_tokens, floor, key_of(static_cast<uint64_t>(seed))), chosen);
    double numerator = 0.0, denominator = 0.0, variance = 0.0;
    for (size_t i = 0; i < chosen.token_ids.size(); ++i) {
      const double inverse = std::exp(double{chosen.log_weight[i]});
      const double term = mass[chosen.token_ids[i]] * inverse;
      numerator += term * value[chosen.token_ids[i]];
      denominator += term;
      variance += term * term * (1.0 - 1.0 / inverse);
    }
    numerators.push_back(numerator);
    denominators.push_back(denominator);
    result.estimated_variance += variance / num_seeds;
    const double error = numerator / denominator - result.exact_numerator / result.exact_denominator;
    result.ratio_error += error * error / num_seeds;
  }
  result.ratio_error = std::sqrt(result.ratio_error);
  result.numerator = moments(numerators);
  result.denominator = moments(denominators);
  return result;
}

enum class Scores { exact, half_nat, one_nat, two_level };
const char* to_string(Scores scores) {
  constexpr const char* kNames[] = {"exact", "half_nat", "one_nat", "two_level"};
  return kNames[static_cast<int>(scores)];
}

// Those of COARSE+FINE: the best quarter of the pages has token scores with an error of half a nat, all other tokens have the
// logarithm of their page's mean weight.
std::vector<float> two_level(const std::vector<double>& weights, uint32_t seed) {
  constexpr int32_t kPage = 16;
  std::vector<float> result = noisy(weights, 0.5, seed);
  std::vector<double> pages;  // [num_pages] f64
  for (size_t first = 0; first < weights.size(); first += kPage)
    pages.push_back(ref::log_sum_exp(weights.data() + first, kPage) - std::log(kPage));
  std::vector<double> order = pages;
  std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(order.size() / 4), order.end(),
                   std::greater<>());
  for (size_t token = 0; token < weights.size(); ++token) {
    const double page = pages[token / kPage];
    if (page < order[order.size() / 4]) result[token] = static_cast<float>(page);
  }
  return result;
}

std::vector<float> estimated(Scores scores, const std::vector<double>& weights, uint32_t seed) {
  if (scores == Scores::two_level) return two_level(weights, seed);
  return noisy(weights, scores == Scores::exact ? 0.0 : scores == Scores::half_nat ? 0.5 : 1.0, seed);
}

class Estimator : public testing::TestWithParam<std::tuple<Shape, Scores, Spend, double>> {};

TEST_P(Estimator, IsUnbiasedAndKnowsItsVariance) {
  const auto [shape, scores, spend_rule, floor] = GetParam();
  constexpr int32_t kTokens = 2048, kBudget = 96, kSeeds = kNumSeeds;
  const auto weights = log_weights(shape, kTokens, kSeed);
  const auto result = simulate(spend_rule, weights, estimated(scores, weights, kSeed + 2), kBudget, floor, kSeeds);
  const double tiny = 1e-6;  // rounding, where the variance is next to nothing
  EXPECT_NEAR(result.numerator.mean, result.exact_numerator, 3 * std::sqrt(result.numerator.variance / kSeeds) + tiny);
  EXPECT_NEAR(result.denominator.mean, result.exact_denominator,
              3 * std::sqrt(result.denominator.variance / kSeeds) + tiny);
  if (result.denominator.variance > 1e-8 && !is_flat(spend_rule)) {
    EXPECT_NEAR(result.estimated_variance / result.denominator.variance, 1.0, kVarianceTolerance);
  } else if (result.denominator.variance > 1e-8) {
    // Even tails: the certificate takes second moments for variances and errs to the safe side; that of a systematic tail is the
    // same, an estimate for independent draws. Without bias it is for neither (docs/certificate.md).
    EXPECT_GE(result.estimated_variance / result.denominator.variance, 1.0 - kVarianceTolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Distributions, Estimator,
                         testing::Combine(testing::Values(Shape::flat, Shape::spike, Shape::heavy, Shape::clustered),
                                          testing::Values(Scores::exact, Scores::half_nat, Scores::one_nat,
                                                          Scores::two_level),
                                          testing::Values(Spend::priority, Spend::half, Spend::uniform, Spend::gumbel,
                                                          Spend::systematic, Spend::vattention),
                                          testing::Values(0.0, 0.1)),
                         [](const auto& info) {
                           std::string name = to_string(std::get<0>(info.param));
                           std::replace(name.begin(), name.end(), ' ', '_');
                           return name + "_" + to_string(std::get<1>(info.param)) + "_" +
                                  std::string(to_string(std::get<2>(info.param))) +
                                  (std::get<3>(info.param) > 0 ? "_floor" : "");
                         });

// What theory expects of numerator / denominator: sqrt(sum w^2 (1 - pi) / pi (v - out)^2), with pi = min(1, q / tau) for priority
// sampling on estimated weights q, and b / n behind the better half of the budget for a uniform tail.
double predicted_error(Spend spend_rule, const std::vector<double>& weights, const std::vector<float>& scores,
                       int32_t budget) {
  const auto num_tokens = static_cast<int32_t>(weights.size());
  const std::vector<double> value = token_values(weights.size());
  std::vector<int32_t> order(weights.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  std::vector<double> rest(weights.size() + 1, 0.0);  // sum of q from the r-th best on
  for (int32_t r = num_tokens - 1; r >= 0; --r) rest[r] = rest[r + 1] + std::exp(double{scores[order[r]]});
  double tau = 0.0, out = 0.0, squares = 0.0;
  for (int32_t r = 0; r < budget && tau == 0.0; ++r) {
    if (std::exp(double{scores[order[r]]}) <= rest[r] / (budget - r)) tau = rest[r] / (budget - r);
  }
  for (int32_t i = 0; i < num_tokens; ++i) out += std::exp(weights[i]) * value[i];
  const int32_t num_top = (budget + 1) / 2;
  for (int32_t r = 0; r < num_tokens; ++r) {
    const int32_t token = order[r];
    const double flat = r < num_top ? 1.0 : static_cast<double>(budget - num_top) / (num_tokens - num_top);
    const double pi = spend_rule == Spend::uniform ? flat : std::min(1.0, std::exp(double{scores[token]}) / tau);
    squares += std::pow(std::exp(weights[token]) * (value[token] - out), 2) * (1.0 - pi) / pi;
  }
  return std::sqrt(squares);
}

// Both ways to spend err as much as theory says; so does their ratio, whatever it is (docs/adr/0003-priority-sampling.md). Left
// are the spread of tau and the bias of a ratio. A uniform tail on scores that are off by a nat is not asserted: now and then it
// draws a token that, times n / b, outweighs the whole sum, and then numerator / denominator errs less than its first order.
TEST(Spending, ErrorsAreThoseOfTheory) {
  for (Shape shape : {Shape::flat, Shape::heavy, Shape::normal, Shape::wide}) {
    const auto weights = log_weights(shape, 4096, kSeed + 9);
    for (double noise : {0.0, 0.5, 1.0}) {
      const auto scores = noisy(weights, noise, kSeed + 10);
      for (Spend spend_rule : {Spend::priority, Spend::uniform}) {
        if (spend_rule == Spend::uniform && noise > 0.5) continue;
        const double expected = predicted_error(spend_rule, weights, scores, 160);
        EXPECT_NEAR(simulate(spend_rule, weights, scores, 160, 0.0, kNumSeeds).ratio_error / expected, 1.0, 0.15)
            << to_string(shape) << " noise " << noise << " " << to_string(spend_rule);
      }
    }
  }
}

// At the same budget, on logits like those of attention (normal, 2 and 3 nats wide): half the error of a uniform tail with
// exact scores, three quarters with noise. tests/property/selection_test.cc repeats this with the selectors' own scores.
TEST(Spending, PriorityHasLessErrorThanAUniformTail) {
  for (Shape shape : {Shape::normal, Shape::wide}) {
    const auto weights = log_weights(shape, 4096, kSeed + 9);
    for (const auto& [noise, limit] : {std::pair{0.0, 0.5}, std::pair{0.5, 0.75}, std::pair{1.0, 0.75}}) {
      const auto scores = noisy(weights, noise, kSeed + 10);
      const double priority = simulate(Spend::priority, weights, scores, 160, 0.0, kNumSeeds).ratio_error;
      const double uniform = simulate(Spend::uniform, weights, scores, 160, 0.0, kNumSeeds).ratio_error;
      std::printf("%s, noise %.1f: error %.4f by priority, %.4f with a uniform tail, ratio %.2f\n", to_string(shape), noise,
                  priority, uniform, priority / uniform);
      EXPECT_LE(priority, limit * uniform) << to_string(shape) << " noise " << noise;
    }
  }
}

}  // namespace
}  // namespace rarefy
