#include "rarefy/engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace rarefy {
namespace {

const std::vector<float> kLogits = {1.0f, 3.0f, 3.0f, -std::numeric_limits<float>::infinity(), 2.0f};  // [5] f32

TEST(Sampler, GreedyTakesTheLowestOfEqualLogits) {
  auto sampler = Sampler::make({});
  ASSERT_TRUE(sampler);
  EXPECT_EQ(sampler->sample(kLogits, 0), 1);
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  auto sampler = Sampler::make({.temperature = 0.7, .seed = 11});
  ASSERT_TRUE(sampler);
  constexpr int kDraws = 40000;
  std::vector<int> counts(kLogits.size());
  for (int draw = 0; draw < kDraws; ++draw) ++counts[sampler->sample(kLogits, draw)];
  double total = 0.0;
  for (float logit : kLogits) total += std::exp(logit / 0.7);
  for (size_t i = 0; i < kLogits.size(); ++i) {
    const double p = std::exp(kLogits[i] / 0.7) / total;
    // Five standard errors of a binomial share.
    EXPECT_NEAR(counts[i] / double(kDraws), p, 5 * std::sqrt(p * (1 - p) / kDraws) + 1e-12) << "token " << i;
  }
}

TEST(Sampler, TopKAndTopPCutTheTail) {
  auto top_k = Sampler::make({.temperature = 5.0, .top_k = 3});
  auto top_p = Sampler::make({.temperature = 1.0, .top_p = 0.5});
  ASSERT_TRUE(top_k && top_p);
  for (int draw = 0; draw < 2000; ++draw) {
    EXPECT_NE(top_k->sample(kLogits, draw), 0);
    const int32_t token = top_p->sample(kLogits, draw);
    EXPECT_TRUE(token == 1 || token == 2) << token;
  }
}

TEST(Sampler, SameSeedAndPositionSameToken) {
  auto a = Sampler::make({.temperature = 1.0, .seed = 5});
  auto b = Sampler::make({.temperature = 1.0, .seed = 5});
  ASSERT_TRUE(a && b);
  for (int position = 0; position < 100; ++position) EXPECT_EQ(a->sample(kLogits, position), b->sample(kLogits, position));
}

TEST(Sampler, RefusesNonsense) {
  EXPECT_FALSE(Sampler::make({.temperature = -1.0}));
  EXPECT_FALSE(Sampler::make({.temperature = std::nan("")}));
  EXPECT_FALSE(Sampler::make({.top_k = -1}));
  EXPECT_FALSE(Sampler::make({.top_p = 0.0}));
  EXPECT_FALSE(Sampler::make({.top_p = 1.5}));
}

}  // namespace
}  // namespace rarefy
