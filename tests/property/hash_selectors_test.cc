// Selectors that hash keys: signs of projections, collisions and soft collisions against double precision.
#include <gtest/gtest.h>

#include "ref/select.h"
#include "select/magicpig.h"
#include "select/socket.h"
#include "tests/support/selector_case.h"

namespace rarefy {
namespace {

using Case = test::SelectorCase;
constexpr double kEps32 = 0x1p-24;
constexpr uint32_t kSeed = 57721;

// Checks the signs of x's projections in `id` where they are clear of rounding: planes [num_signs] of one table.
void expect_signs(const std::vector<double>& x, const HashPlanes& planes, int32_t first_plane, int32_t num_signs,
                  int32_t id) {
  for (int32_t j = 0; j < num_signs; ++j) {
    double sum = 0.0, magnitude = 0.0;
    for (int32_t i = 0; i < planes.dim(); ++i) {
      sum += x[i] * planes.plane(first_plane + j)[i];
      magnitude += std::abs(x[i] * planes.plane(first_plane + j)[i]);
    }
    if (std::abs(sum) <= (planes.dim() + 8) * kEps32 * magnitude) continue;
    EXPECT_EQ((id >> j & 1) != 0, sum > 0.0) << "plane " << first_plane + j;
  }
}

TEST(HashPlanes, AreStandardNormal) {
  const HashPlanes planes(600, 129, 1);
  double sum = 0.0, square = 0.0, fourth = 0.0;
  const double n = 600 * 129;
  for (int32_t i = 0; i < 600; ++i) {
    for (int32_t d = 0; d < 129; ++d) {
      const double x = planes.plane(i)[d];
      sum += x / n, square += x * x / n, fourth += x * x * x * x / n;
    }
  }
  EXPECT_NEAR(sum, 0.0, 4 / std::sqrt(n));
  EXPECT_NEAR(square, 1.0, 4 * std::sqrt(2 / n));
  EXPECT_NEAR(fourth, 3.0, 4 * std::sqrt(96 / n));
}

TEST(MagicPig, IdsAndScoresMatchTheReference) {
  for (const auto& [options, num_signs, num_tables] :
       {std::tuple{"", 8, 75}, std::tuple{":4x32", 4, 32}, std::tuple{":10x20", 10, 20}, std::tuple{":1x255", 1, 255}}) {
    for (const auto& [head_dim, group] : {std::pair{64, 4}, std::pair{80, 1}, std::pair{128, 3}}) {
      SCOPED_TRACE(std::string(options) + " head_dim " + std::to_string(head_dim));
      const Case c(std::string("magicpig") + options, head_dim, group, 16 * 4 + 5, DType::bf16, kSeed);
      const auto& selector = dynamic_cast<const MagicPigSelector&>(*c.selector);
      const auto* mean = reinterpret_cast<const float*>(c.trained.data());
      const double longest = mean[head_dim];
      const auto scores = c.scores();
      for (int32_t query = 0; query < group; ++query) {
        std::vector<double> lifted(c.q.begin() + query * head_dim, c.q.begin() + (query + 1) * head_dim);
        lifted.push_back(0.0);
        for (int32_t table = 0; table < num_tables; ++table) {
          expect_signs(lifted, selector.planes(), table * num_signs, num_signs,
                       selector.query_id(c.state.data(), query, table));
        }
      }
      for (int32_t token = 0; token < c.num_tokens; ++token) {
        std::vector<double> lifted;
        double square = 0.0;
        for (int32_t d = 0; d < head_dim; ++d) {
          lifted.push_back((double{c.keys[int64_t{token} * head_dim + d]} - mean[d]) / longest);
          square += lifted.back() * lifted.back();
        }
        lifted.push_back(std::sqrt(std::max(0.0, 1.0 - square)));
        std::vector<int32_t> counts(static_cast<size_t>(group));
        for (int32_t table = 0; table < num_tables; ++table) {
          const int32_t id = selector.token_id(c.entry(token / 16), token % 16, table);
          if (token % 5 == 0 && std::abs(square - 1.0) > 1e-4) {  // a short last component is all cancellation
            expect_signs(lifted, selector.planes(), table * num_signs, num_signs, id);
          }
          for (int32_t query = 0; query < group; ++query)
            counts[query] += id == selector.query_id(c.state.data(), query, table) ? 1 : 0;
        }
        for (int32_t query = 0; query < group; ++query) {
          const double expected = ref::collision_score(c.q.data() + query * head_dim, mean, head_dim, longest,
                                                       counts[query], num_signs, num_tables);
          EXPECT_NEAR(scores[query][token], expected, 1e-5 * (1 + std::abs(expected))) << "token " << token;
        }
      }
    }
  }
}

// With many tables the count becomes the angle, and the score the logit.
TEST(MagicPig, ScoresEstimateLogits) {
  const Case c("magicpig:1x255", 64, 4, 16 * 60, DType::bf16, kSeed + 1, 0.0f);
  const auto scores = c.scores();
  double error = 0.0, variance = 0.0;
  for (int32_t query = 0; query < 4; ++query) {
    const auto exact = ref::exact_scores(c.q.data() + query * 64, c.keys.data(), c.num_tokens, 64);
    for (int32_t token = 0; token < c.num_tokens; ++token) {
      error += std::pow(scores[query][token] - exact.value[token], 2);
      variance += std::pow(exact.value[token], 2);
    }
  }
  // cos(theta) has the standard deviation pi sin(theta) sqrt(p (1 - p) / 255) <= 0.0984, times |q| M = 2 * 11 or so.
  EXPECT_LT(std::sqrt(error / (4 * c.num_tokens)), 0.0984 * 2.5 * 12.5);
  EXPECT_LT(error, 2.0 * variance);
}

TEST(Socket, IdsNormsAndScoresMatchTheReference) {
  for (const auto& [options, num_signs, num_tables] :
       {std::tuple{"", 11, 55}, std::tuple{":4x32", 4, 32}, std::tuple{":1x7", 1, 7}, std::tuple{":12x3", 12, 3}}) {
    for (const auto& [head_dim, group] : {std::pair{64, 4}, std::pair{80, 1}, std::pair{128, 9}}) {
      SCOPED_TRACE(std::string(options) + " head_dim " + std::to_string(head_dim));
      const Case c(std::string("socket") + options, head_dim, group, 16 * 3 + 5, DType::bf16, kSeed);
      const auto& selector = dynamic_cast<const SocketSelector&>(*c.selector);
      const auto scores = c.scores();
      for (int32_t token = 0; token < c.num_tokens; ++token) {
        const float* row = c.keys.data() + int64_t{token} * head_dim;
        std::vector<int32_t> ids;
        for (int32_t table = 0; table < num_tables; ++table) {
          ids.push_back(selector.token_id(c.entry(token / 16), token % 16, table));
          if (token % 5 == 0) {
            expect_signs(std::vector<double>(row, row + head_dim), selector.planes(), table * num_signs, num_signs,
                         ids.back());
          }
        }
        double square = 0.0;
        for (int32_t d = 0; d < head_dim; ++d) square += std::pow(double{c.values[int64_t{token} * head_dim + d]}, 2);
        const double norm = selector.value_norm(c.entry(token / 16), token % 16);
        EXPECT_NEAR(norm, std::sqrt(square), 0x1p-8 * std::sqrt(square));
        for (int32_t query = token % 3; query < group; query += 3) {  // the reference visits all corners
          const double expected =
              ref::soft_collision_score(c.q.data() + query * head_dim, head_dim, selector.planes().plane(0), ids, num_signs,
                                        SocketSelector::kTemperature) +
              std::log(norm);
          // The projection of a query moves by (head_dim + 2) roundings; tanh and the product over signs pass that on.
          EXPECT_NEAR(scores[query][token], expected, 2e-4) << "token " << token << " query " << query;
        }
      }
    }
  }
}

TEST(Socket, RanksSimilarKeysFirst) {
  const Case c("socket", 64, 1, 16 * 60, DType::bf16, kSeed + 2, 0.0f);
  const auto scores = c.scores()[0];
  const auto exact = ref::exact_scores(c.q.data(), c.keys.data(), c.num_tokens, 64);
  double sum = 0.0, sum_scores = 0.0, xx = 0.0, yy = 0.0, xy = 0.0;
  for (int32_t i = 0; i < c.num_tokens; ++i)
    sum += exact.value[i] / c.num_tokens, sum_scores += double{scores[i]} / c.num_tokens;
  for (int32_t i = 0; i < c.num_tokens; ++i) {
    xx += std::pow(exact.value[i] - sum, 2);
    yy += std::pow(scores[i] - sum_scores, 2);
    xy += (exact.value[i] - sum) * (scores[i] - sum_scores);
  }
  EXPECT_GT(xy / std::sqrt(xx * yy), 0.5);
}

}  // namespace
}  // namespace rarefy
