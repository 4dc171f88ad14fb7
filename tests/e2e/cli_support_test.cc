// Statistics and scores behind the program's tables, against values worked out by hand or by definition.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "scoring.h"
#include "statistics.h"
#include "table.h"
#include "terminal.h"

namespace rarefy::cli {
namespace {

TEST(Statistics, MeanAndStandardError) {
  const MeanAndError result = mean_and_error({1.0, 2.0, 3.0, 6.0});
  EXPECT_DOUBLE_EQ(result.mean, 3.0);
  EXPECT_NEAR(result.standard_error, std::sqrt(14.0 / 3.0 / 4.0), 1e-15);
  EXPECT_EQ(mean_and_error({5.0}).standard_error, 0.0);
}

TEST(Statistics, Quantiles) {
  const std::vector<double> values = {5, 1, 4, 2, 3};
  EXPECT_EQ(median(values), 3.0);
  EXPECT_EQ(quantile(values, 0.0), 1.0);
  EXPECT_EQ(quantile(values, 0.8), 4.0);
  EXPECT_EQ(quantile(values, 0.81), 5.0);
  EXPECT_EQ(quantile({}, 0.5), 0.0);
}

TEST(Statistics, WilsonSolvesItsEquation) {
  // The ends of the interval are where |observed - p| = z sqrt(p (1 - p) / n).
  for (const auto& [right, total] : {std::pair<int64_t, int64_t>{8, 10}, {599, 600}, {0, 5}, {5, 5}}) {
    const Interval interval = wilson(right, total);
    const double observed = static_cast<double>(right) / static_cast<double>(total);
    for (const double p : {interval.low, interval.high}) {
      if (p == 0.0 || p == 1.0) continue;
      EXPECT_NEAR(std::abs(observed - p), 1.959964 * std::sqrt(p * (1.0 - p) / static_cast<double>(total)), 1e-9);
    }
    EXPECT_LE(interval.low, observed);
    EXPECT_GE(interval.high, observed);
  }
}

TEST(Statistics, BootstrapRatioCoversTheRatioAndNothingWhenItIsExact) {
  const std::vector<std::pair<double, double>> equal(50, {1.0, 1.0});
  EXPECT_EQ(bootstrap_ratio(equal).low, 1.0);
  EXPECT_EQ(bootstrap_ratio(equal).high, 1.0);
  std::vector<std::pair<double, double>> pairs;
  for (int i = 0; i < 400; ++i) pairs.emplace_back(i % 10 == 0 ? 0.0 : 1.0, 1.0);
  const Interval interval = bootstrap_ratio(pairs);
  // Standard error of a proportion of 0.9 among 400: 0.015.
  EXPECT_NEAR(interval.low, 0.9 - 1.96 * 0.015, 0.006);
  EXPECT_NEAR(interval.high, 0.9 + 1.96 * 0.015, 0.006);
}

TEST(Scoring, LossAndDivergenceByDefinition) {
  const float never = -std::numeric_limits<float>::infinity();
  const std::vector<float> dense = {std::log(0.5f), std::log(0.25f), std::log(0.25f), never};
  const std::vector<float> other = {std::log(0.2f) + 3.0f, std::log(0.6f) + 3.0f, std::log(0.2f) + 3.0f, never};
  PassageScores scores;
  scores.add(dense, other, 1);
  scores.add(dense, dense, 0);
  EXPECT_NEAR(scores.losses[0], -std::log(0.6), 1e-6);
  EXPECT_NEAR(scores.divergences[0], 0.5 * std::log(0.5 / 0.2) + 0.25 * std::log(0.25 / 0.6) + 0.25 * std::log(0.25 / 0.2),
              1e-6);
  EXPECT_EQ(scores.divergences[1], 0.0);
  EXPECT_DOUBLE_EQ(scores.same_top_share(), 0.5);
}

TEST(Terminal, Numbers) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(17120), "17,120");
  EXPECT_EQ(format_count(-1234567), "-1,234,567");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(15661120), "15.7 MB");
  EXPECT_EQ(format_seconds(125), "2 min 05 s");
}

TEST(Terminal, TextIsCutBetweenCharacters) {
  EXPECT_EQ(fit("grün und blau", 13), "grün und blau");
  EXPECT_EQ(fit("grün und blau", 7), "grün...");
  EXPECT_EQ(display_width("grün…"), 5);
  EXPECT_EQ(one_line("  a\n b\t\tc \n"), "a b c");
}

TEST(Tables, ColumnsLineUp) {
  Table table({"name", "value"});
  table.add_row({"grün", "1"});
  table.add_row({"x", "12345"});
  EXPECT_EQ(table.text(), "name  value\ngrün      1\nx     12345\n");
}

}  // namespace
}  // namespace rarefy::cli
