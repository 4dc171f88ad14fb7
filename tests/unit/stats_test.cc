#include "rarefy/engine/stats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

namespace rarefy {
namespace {

TEST(QuantileSketch, QuantilesAreExactToOneGridStep) {
  std::mt19937 random(7);
  std::lognormal_distribution<double> distribution(-2.0, 1.5);
  std::vector<double> values(10001);
  QuantileSketch sketch;
  for (double& value : values) {
    value = distribution(random);
    sketch.add(value);
  }
  std::sort(values.begin(), values.end());
  for (double p : {0.01, 0.25, 0.5, 0.95, 0.999}) {
    const double exact = values[static_cast<size_t>(std::ceil(p * values.size())) - 1];
    EXPECT_NEAR(std::log(sketch.quantile(p)), std::log(exact), 0.02) << "p=" << p;
  }
  EXPECT_EQ(sketch.quantile(0.0), values.front());
  EXPECT_EQ(sketch.quantile(1.0), values.back());
  EXPECT_EQ(sketch.max(), values.back());
}

TEST(QuantileSketch, MergeEqualsAddingEverything) {
  QuantileSketch left, right, all;
  for (int i = 0; i < 1000; ++i) {
    const double value = 1e-3 * i * i;
    (i % 3 == 0 ? left : right).add(value);
    all.add(value);
  }
  left.merge(right);
  EXPECT_EQ(left.count(), all.count());
  EXPECT_DOUBLE_EQ(left.mean(), all.mean());
  for (double p : {0.1, 0.5, 0.9, 1.0}) EXPECT_EQ(left.quantile(p), all.quantile(p));
}

TEST(QuantileSketch, ExtremesAndNothing) {
  QuantileSketch sketch;
  EXPECT_EQ(sketch.quantile(0.5), 0.0);
  sketch.add(std::nan(""));
  EXPECT_EQ(sketch.count(), 0);
  sketch.add(0.0);
  sketch.add(1e30);
  EXPECT_EQ(sketch.quantile(0.0), 0.0);
  EXPECT_EQ(sketch.quantile(1.0), 1e30);
}

TEST(RunStats, JsonHasLabelsAndRatios) {
  RunStats stats;
  stats.policy = "dense";
  stats.traffic.tokens_read = 2;
  stats.traffic.tokens_cached = 100;
  stats.traffic.row_bytes = 512;
  stats.traffic.index_bytes = 1000;
  stats.traffic.dense_bytes = 25600;
  stats.estimated_error.add(0.1);
  auto json = nlohmann::json::parse(stats.to_json());
  EXPECT_DOUBLE_EQ(json["density"], 0.02);
  EXPECT_DOUBLE_EQ(json["bytes_ratio"], 1512.0 / 25600.0);
  EXPECT_EQ(json["estimated"]["out_rel_std"]["count"], 1);
  EXPECT_FALSE(json.contains("audited"));

  RunStats audited;
  audited.audit.layer_steps = 1;
  audited.audit.layer_error.resize(2);
  audited.audit.layer_error[1].add(0.25);
  audited.audit.error.add(0.25);
  audited.audit.worst = {0.25, 1, 3, 77};
  stats.merge(audited);
  json = nlohmann::json::parse(stats.to_json());
  EXPECT_EQ(json["audited"]["worst"]["position"], 77);
  EXPECT_EQ(json["audited"]["error_per_layer"].size(), 2u);
}

}  // namespace
}  // namespace rarefy
