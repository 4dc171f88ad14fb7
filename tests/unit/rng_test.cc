// Counter-based randomness: known answers of Philox, and one battery of statistical tests for Philox and the token hash. All
// counters are fixed, so every figure below is the same on every run; bounds are 5 standard deviations.
#include "rarefy/core/rng.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

namespace rarefy {
namespace {

constexpr double kSigmas = 5.0;
constexpr uint32_t kDraws = 1u << 20;

TEST(Philox, KnownAnswers) {
  // From the Random123 distribution of Salmon et al.
  using Block = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  constexpr uint32_t kOnes = 0xffffffffu;
  EXPECT_EQ(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Block{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}),
            (Block{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

struct Generator {
  std::string name;
  std::function<uint32_t(uint32_t)> bits;
};

ListKey key_of(uint64_t seed, int32_t layer, int32_t kv_head, int64_t position) {
  return make_list_key(seed, RngPurpose::select, layer, kv_head, position);
}

class Statistics : public ::testing::TestWithParam<int> {
 protected:
  Generator generator() const {
    if (GetParam() == 0) return {"philox", [](uint32_t i) { return philox4x32({i, 0, 0, 0}, {12345, 0})[0]; }};
    const ListKey key = key_of(static_cast<uint64_t>(GetParam()), GetParam() % 7, GetParam() % 3, 1000 * GetParam());
    return {"token_hash", [key](uint32_t i) { return token_hash(key, i); }};
  }
};

TEST_P(Statistics, EveryByteIsUniform) {
  const Generator random = generator();
  for (int shift : {0, 8, 16, 24}) {
    std::vector<double> bins(256);
    for (uint32_t i = 0; i < kDraws; ++i) bins[(random.bits(i) >> shift) & 255] += 1.0;
    const double expected = kDraws / 256.0;
    double chi_square = 0.0;
    for (double count : bins) chi_square += (count - expected) * (count - expected) / expected;
    EXPECT_NEAR(chi_square, 255.0, kSigmas * std::sqrt(2.0 * 255.0)) << random.name << " byte at bit " << shift;
  }
}

TEST_P(Statistics, TokensAreNotCorrelated) {
  const Generator random = generator();
  std::vector<double> centred(kDraws);
  for (uint32_t i = 0; i < kDraws; ++i) centred[i] = uniform_from_hash(random.bits(i)) - 0.5;
  for (uint32_t lag : {1u, 2u, 3u, 4u, 7u, 8u, 16u, 64u, 256u, 1024u, 65536u}) {
    double product = 0.0;
    for (uint32_t i = 0; i + lag < kDraws; ++i) product += centred[i] * centred[i + lag];
    const double correlation = 12.0 * product / (kDraws - lag);
    EXPECT_NEAR(correlation, 0.0, kSigmas / std::sqrt(kDraws - lag)) << random.name << " lag " << lag;
  }
}

TEST_P(Statistics, MeanAndVarianceOfTheUniforms) {
  const Generator random = generator();
  double sum = 0.0, squares = 0.0;
  for (uint32_t i = 0; i < kDraws; ++i) {
    const double u = uniform_from_hash(random.bits(i));
    sum += u;
    squares += (u - 0.5) * (u - 0.5);
  }
  EXPECT_NEAR(sum / kDraws, 0.5, kSigmas * std::sqrt(1.0 / 12.0 / kDraws)) << random.name;
  EXPECT_NEAR(squares / kDraws, 1.0 / 12.0, kSigmas * std::sqrt(1.0 / 180.0 / kDraws)) << random.name;
}

// Kolmogorov and Smirnov's distance: sees what bins of bytes do not.
TEST_P(Statistics, TheDistributionIsUniform) {
  const Generator random = generator();
  std::vector<float> values(kDraws);
  for (uint32_t i = 0; i < kDraws; ++i) values[i] = uniform_from_hash(random.bits(i));
  std::sort(values.begin(), values.end());
  double distance = 0.0;
  for (uint32_t i = 0; i < kDraws; ++i) {
    distance =
        std::max({distance, values[i] - static_cast<double>(i) / kDraws, static_cast<double>(i + 1) / kDraws - values[i]});
  }
  EXPECT_LT(distance, 2.2 / std::sqrt(kDraws)) << random.name;  // exceeded with probability 1.3e-4
}

INSTANTIATE_TEST_SUITE_P(PhiloxAndTokenHash, Statistics, ::testing::Values(0, 1, 2, 3));

TEST(TokenHash, FlippingOneBitOfTheTokenFlipsHalfOfTheOutput) {
  const ListKey key = key_of(9, 1, 2, 3);
  constexpr int kSamples = 1 << 16;
  for (int bit = 0; bit < 32; ++bit) {
    std::vector<int> flips(32);
    for (uint32_t i = 0; i < kSamples; ++i) {
      const uint32_t token = i * 65521u;
      const uint32_t changed = token_hash(key, token) ^ token_hash(key, token ^ (1u << bit));
      for (int out = 0; out < 32; ++out) flips[static_cast<size_t>(out)] += (changed >> out) & 1;
    }
    for (int out = 0; out < 32; ++out) {
      EXPECT_NEAR(flips[static_cast<size_t>(out)] / static_cast<double>(kSamples), 0.5, 0.012)
          << "bit " << bit << " to " << out;
    }
  }
}

TEST(ListKeys, NeighbouringListsAreIndependent) {
  const ListKey base = key_of(7, 3, 2, 5000);
  const ListKey others[] = {key_of(8, 3, 2, 5000),
                            key_of(7, 4, 2, 5000),
                            key_of(7, 3, 3, 5000),
                            key_of(7, 3, 2, 5001),
                            key_of(7, 3, 2, 5000 + (int64_t{1} << 32)),
                            make_list_key(7, RngPurpose::tail, 3, 2, 5000),
                            ListKey{base.add + 1, base.mask},
                            ListKey{base.add, base.mask ^ 1}};
  for (const ListKey& other : others) {
    for (uint32_t shift : {0u, 1u, 2u, 16u}) {
      double product = 0.0;
      constexpr uint32_t kTokens = 1u << 18;
      int equal = 0;
      for (uint32_t token = 0; token < kTokens; ++token) {
        product += (token_uniform(base, token) - 0.5) * (token_uniform(other, token + shift) - 0.5);
        equal += token_hash(base, token) == token_hash(other, token + shift) ? 1 : 0;
      }
      // The list whose counter is shifted by one with the same mask is a shifted copy at shift -1, never at these shifts.
      EXPECT_NEAR(12.0 * product / kTokens, 0.0, kSigmas / std::sqrt(kTokens)) << "shift " << shift;
      EXPECT_LE(equal, 2);
    }
  }
}

TEST(ListKeys, EveryFieldChangesTheKey) {
  std::vector<uint64_t> keys;
  for (int32_t layer = 0; layer < 16; ++layer) {
    for (int32_t head = 0; head < 16; ++head) {
      for (int64_t position : {int64_t{0}, int64_t{1}, int64_t{1} << 31, int64_t{1} << 33}) {
        for (uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 40}) {
          const ListKey key = key_of(seed, layer, head, position);
          keys.push_back(uint64_t{key.add} << 32 | key.mask);
        }
      }
    }
  }
  std::sort(keys.begin(), keys.end());
  EXPECT_EQ(std::adjacent_find(keys.begin(), keys.end()), keys.end());
}

TEST(Uniform, StaysInsideTheOpenUnitInterval) {
  EXPECT_GT(uniform_from_hash(0), 0.0f);
  EXPECT_LE(uniform_from_hash(0xffffffffu), 1.0f);
  EXPECT_TRUE(std::isfinite(-std::log(uniform_from_hash(0))));
  EXPECT_LE(-std::log(uniform_from_hash(0)), 22.2f);
}

}  // namespace
}  // namespace rarefy
