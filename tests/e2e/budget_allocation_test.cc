// Budgets over layers: against the known optimum of power laws, against every possible choice, and at the edges.
#include "budget_allocation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "budget_ladder.h"

namespace rarefy::cli {
namespace {

constexpr double kIndex = 0.03;  // bytes_ratio of the index

// error^2 = c / density^2, bytes = density + index: the Lagrangian optimum has densities proportional to c^(1/3).
std::vector<BudgetPoint> power_law(double c, int num_points) {
  std::vector<BudgetPoint> points;
  for (int i = 0; i < num_points; ++i) {
    const double density = 0.0025 * std::pow(100.0, static_cast<double>(i) / (num_points - 1));
    points.push_back({density, density + kIndex, c / (density * density)});
  }
  return points;
}

TEST(BudgetCurve, InterpolatesPowerLawsExactlyAndEndsDense) {
  const BudgetCurve curve = make_curve(power_law(1e-6, 7), 300);
  ASSERT_EQ(curve.size(), 302u);
  for (size_t i = 0; i + 1 < curve.size(); ++i) {
    EXPECT_NEAR(curve[i].squared_error, 1e-6 / (curve[i].density * curve[i].density), 1e-9 * curve[i].squared_error);
    EXPECT_NEAR(curve[i].bytes_ratio, curve[i].density + kIndex, 1e-12);
  }
  EXPECT_EQ(curve.back().squared_error, 0.0);
  EXPECT_EQ(curve.back().bytes_ratio, 1.0);
}

TEST(BudgetCurve, PoolsErrorsThatRise) {
  const BudgetCurve curve = make_curve({{0.01, 0.02, 0.5}, {0.02, 0.03, 0.1}, {0.04, 0.05, 0.4}, {0.08, 0.09, 0.01}}, 30);
  for (size_t i = 1; i < curve.size(); ++i) EXPECT_LE(curve[i].squared_error, curve[i - 1].squared_error);
  EXPECT_NEAR(curve[10].squared_error, 0.2, 1e-9);  // at 0.02: the geometric mean of 0.1 and 0.4
  EXPECT_NEAR(curve[20].squared_error, 0.2, 1e-9);
}

TEST(BudgetAllocation, FindsTheOptimumOfPowerLaws) {
  const std::vector<double> constants = {1e-6, 8e-6, 27e-6, 64e-6};
  std::vector<BudgetCurve> curves;
  double cube_roots = 0.0;
  for (const double c : constants) {
    curves.push_back(make_curve(power_law(c, 9), 2000));
    cube_roots += std::cbrt(c);
  }
  const auto count = static_cast<double>(constants.size());
  for (const double bytes : {0.06, 0.08, 0.12}) {
    // densities d_l = t c_l^(1/3) with sum d_l = count (bytes - index); error^2 = sum c_l / d_l^2 / count
    const double t = count * (bytes - kIndex) / cube_roots;
    const double best = std::sqrt(cube_roots / (t * t) / count);
    const BudgetChoice choice = least_error(curves, bytes);
    EXPECT_LE(choice.bytes_ratio, bytes * (1.0 + 1e-9));
    EXPECT_NEAR(choice.error, best, 0.005 * best);
    for (size_t layer = 0; layer < constants.size(); ++layer) {
      const double wanted = t * std::cbrt(constants[layer]);
      EXPECT_NEAR(curves[layer][choice.points[layer]].density, wanted, 0.02 * wanted) << "layer " << layer;
    }
    // And back: the least bytes for that error are those bytes.
    const BudgetChoice back = least_bytes(curves, choice.error);
    EXPECT_LE(back.error, choice.error * (1.0 + 1e-9));
    EXPECT_NEAR(back.bytes_ratio, choice.bytes_ratio, 0.002 * bytes);
    const BudgetChoice single = single_least_error(curves, bytes);
    EXPECT_GT(single.error, 1.1 * choice.error);
    EXPECT_GT(single_least_bytes(curves, choice.error).bytes_ratio, 1.04 * choice.bytes_ratio);
  }
}

// Random curves, small enough to try every choice. Hull points are optimal up to the target that lies between two of them.
TEST(BudgetAllocation, IsAsGoodAsEveryChoiceUpToOneStep) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> uniform(0.2, 1.0);
  constexpr int kRounds = 200;
  double excess_bytes = 0.0, excess_error = 0.0;
  for (int round = 0; round < kRounds; ++round) {
    std::vector<BudgetCurve> curves(3);
    for (BudgetCurve& curve : curves) {
      double bytes = 0.0, error = uniform(random);
      for (int i = 0; i < 6; ++i) {
        bytes += 0.1 * uniform(random);
        curve.push_back({bytes, bytes, error});
        error *= uniform(random);
      }
      curve.push_back({1.0, 1.0, 0.0});
    }
    const double target = 0.05 + 0.5 * uniform(random), bytes = 0.1 + 0.6 * uniform(random);
    double fewest = 10.0, smallest = 10.0;
    for (size_t code = 0; code < 7 * 7 * 7; ++code) {
      const BudgetChoice choice = describe_choice(curves, {code % 7, code / 7 % 7, code / 49});
      if (choice.error <= target) fewest = std::min(fewest, choice.bytes_ratio);
      if (choice.bytes_ratio <= bytes) smallest = std::min(smallest, choice.error);
    }
    const BudgetChoice cheap = least_bytes(curves, target), exact = least_error(curves, bytes);
    EXPECT_LE(cheap.error, target * (1.0 + 1e-9));
    EXPECT_GE(cheap.bytes_ratio, fewest - 1e-12);
    // One step of one of three layers: at most the step to the dense layer.
    EXPECT_LE(cheap.bytes_ratio, fewest + 0.9 / 3.0) << "round " << round;
    EXPECT_GE(exact.error, smallest - 1e-12);
    if (smallest < 10.0) {
      EXPECT_LE(exact.bytes_ratio, bytes * (1.0 + 1e-9));
      EXPECT_LE(exact.error * exact.error, smallest * smallest + 1.0 / 3.0) << "round " << round;
      excess_error += (exact.error - smallest) / kRounds;
    }
    excess_bytes += (cheap.bytes_ratio - fewest) / kRounds;
  }
  // Few rounds come near that bound.
  EXPECT_LT(excess_bytes, 0.02);
  EXPECT_LT(excess_error, 0.02);
}

TEST(BudgetAllocation, EdgesAreTheSmallestBudgetsAndDense) {
  const std::vector<BudgetCurve> curves(3, make_curve(power_law(1e-6, 5), 50));
  EXPECT_EQ(least_bytes(curves, 1e9).points, std::vector<size_t>(3, 0));
  EXPECT_EQ(least_bytes(curves, 0.0).bytes_ratio, 1.0);
  EXPECT_EQ(least_bytes(curves, 0.0).error, 0.0);
  EXPECT_EQ(least_error(curves, 1e-9).points, std::vector<size_t>(3, 0));
  EXPECT_EQ(least_error(curves, 1.0).error, 0.0);
  EXPECT_EQ(single_least_bytes(curves, 0.0).bytes_ratio, 1.0);
  // Alike layers get alike budgets: nothing is gained.
  const BudgetChoice choice = least_error(curves, 0.07), single = single_least_error(curves, 0.07);
  EXPECT_LE(choice.error, single.error);
  EXPECT_NEAR(choice.error, single.error, 0.1 * single.error);
}

TEST(BudgetLadder, PoliciesSayWhatWasChosenAndParseBack) {
  Policy base = *Policy::parse("50x index=q2 sink=8");
  const Policy fractions = with_densities(base, {0, 2, 4, 5}, {0.012, 0.034567, 0.012, 1.0}, 10000);
  EXPECT_EQ(fractions.to_string(),
            "total=0.012 sink=8 local=32 index=q2 spend=priority min=512 dense_layers=5 total@2=0.0346");
  EXPECT_EQ(*Policy::parse(fractions.to_string()), fractions);
  base = *Policy::parse("total=100 index=q2");
  const Policy tokens = with_densities(base, {0, 1, 2, 3}, {0.012, 0.03, 0.03, 0.012}, 10000);
  EXPECT_EQ(tokens.total_tokens(0, 10000), 120);
  EXPECT_EQ(tokens.total_tokens(2, 10000), 300);
  EXPECT_EQ(*Policy::parse(tokens.to_string()), tokens);
  EXPECT_TRUE(with_densities(base, {0, 1}, {1.0, 1.0}, 10000).dense);
  const std::vector<double> densities = ladder_densities(1000, 5);
  EXPECT_NEAR(densities.front(), 0.016, 1e-12);
  EXPECT_NEAR(densities.back(), 0.25, 1e-12);
  EXPECT_NEAR(densities[2] * densities[2], densities[1] * densities[3], 1e-12);
}

}  // namespace
}  // namespace rarefy::cli
