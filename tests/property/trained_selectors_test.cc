// Selectors that train: product quantisation and channel codes against double precision, and training itself.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "hwy/targets.h"
#include "ref/select.h"
#include "select/channel_codes.h"
#include "select/k_means.h"
#include "select/product_codes.h"
#include "tests/support/selector_case.h"

namespace rarefy {
namespace {

using Case = test::SelectorCase;
constexpr double kEps32 = 0x1p-24;
constexpr uint32_t kSeed = 31415;

// Each piece has the code of its nearest centroid (or of one as near within rounding), and the score is the sum of the parts.
TEST(ProductCodes, CodesAndScoresMatchTheReference) {
  for (const std::string name : {"pq16x4", "pq8x4", "pq4x4", "pq4x8", "pq8x8", "pq2x6", "pq8x5", "pq4x7"}) {
    for (const auto& [head_dim, group] : {std::pair{64, 4}, std::pair{80, 1}, std::pair{128, 7}}) {
      SCOPED_TRACE(name + " head_dim " + std::to_string(head_dim) + " group " + std::to_string(group));
      const Case c(name, head_dim, group, 16 * 5 + 3, DType::bf16, kSeed);
      const auto& selector = dynamic_cast<const ProductCodeSelector&>(*c.selector);
      const int32_t dim = selector.piece_dim(), count = selector.num_centroids();
      const auto scores = c.scores();
      std::set<int32_t> seen;
      for (int32_t token = 0; token < c.num_tokens; ++token) {
        std::vector<double> expected(static_cast<size_t>(group)), magnitude(expected.size());
        for (int32_t piece = 0; piece < selector.num_pieces(); ++piece) {
          const float* centroids = selector.centroids(c.trained.data(), piece);
          const float* key = c.keys.data() + int64_t{token} * head_dim + piece * dim;
          const int32_t code = selector.code(c.entry(token / 16), token % 16, piece);
          ASSERT_GE(code, 0);
          ASSERT_LT(code, count);
          seen.insert(code);
          const auto distances = ref::centroid_distances(key, dim, centroids, count);
          double scale = 0.0;  // of what nearest_centroid compares: |c|^2 / 2 - x . c
          for (int32_t i = 0; i < dim * count; ++i) {
            scale = std::max(scale, std::abs(double{centroids[i]}) *
                                        (std::abs(double{centroids[i]}) + std::abs(double{key[i / count]})));
          }
          EXPECT_LE(distances[code],
                    *std::min_element(distances.begin(), distances.end()) + 4 * (dim + 2) * dim * kEps32 * scale);
          for (int32_t query = 0; query < group; ++query) {
            const float* q = c.q.data() + query * head_dim + piece * dim;
            expected[query] += ref::centroid_dots(q, dim, centroids, count)[code];
            for (int32_t d = 0; d < dim; ++d)
              magnitude[query] += std::abs(double{q[d]} * double{centroids[d * count + code]});
          }
        }
        for (int32_t query = 0; query < group; ++query) {
          double bound = (head_dim + 20) * kEps32 * (magnitude[query] + 1.0);
          if (count == 16) {  // half a step of the table for each piece
            bound += 0.5 * selector.table_step(c.state.data(), query) * selector.num_pieces() * (1 + 1e-4);
            bound += 64 * kEps32 * 31 * selector.table_step(c.state.data(), query) * selector.num_pieces();
          }
          EXPECT_NEAR(scores[query][token], expected[query], bound) << "token " << token << " query " << query;
        }
      }
      EXPECT_GT(seen.size(), 8u);
    }
  }
}

// Trained data, codes and scores.
TEST(ProductCodes, HaveTheSameBitsOnEveryInstructionSet) {
  for (const std::string name : {"pq16x4", "pq8x5", "ds16"}) {
    const Case best(name, 64, 5, 16 * 21, DType::bf16, kSeed);
    const auto expected = best.scores();
    for (int64_t disabled :
         {int64_t{HWY_AVX3_DL}, int64_t{HWY_AVX3_DL | HWY_AVX3}, int64_t{HWY_AVX3_DL | HWY_AVX3 | HWY_AVX2}}) {
      hwy::DisableTargets(disabled);
      const Case other(name, 64, 5, 16 * 21, DType::bf16, kSeed);
      EXPECT_EQ(other.scores(), expected) << name << " without targets " << disabled;
      EXPECT_EQ(std::memcmp(other.index.data(), best.index.data(), best.index.capacity()), 0);
      EXPECT_EQ(std::memcmp(other.trained.data(), best.trained.data(), best.trained.capacity()), 0);
      hwy::DisableTargets(0);
    }
  }
}

double mean_distance(const std::vector<float>& points, int32_t dim, const std::vector<float>& centroids, int32_t count) {
  double sum = 0.0;
  const auto num_points = static_cast<int32_t>(points.size()) / dim;
  for (int32_t i = 0; i < num_points; ++i) {
    const auto distances = ref::centroid_distances(&points[static_cast<size_t>(i) * dim], dim, centroids.data(), count);
    sum += *std::min_element(distances.begin(), distances.end());
  }
  return sum / num_points;
}

TEST(KMeans, FindsSeparateClustersAndRepeatsItself) {
  constexpr int32_t kDim = 3, kClusters = 16, kPoints = 800;
  std::mt19937 random(kSeed);
  std::normal_distribution<float> normal;
  std::vector<float> middles, points;
  for (int32_t i = 0; i < kClusters * kDim; ++i) middles.push_back(10.0f * normal(random));
  for (int32_t i = 0; i < kPoints * kDim; ++i) points.push_back(middles[i % (kClusters * kDim)] + 0.01f * normal(random));
  std::vector<float> centroids(kDim * kClusters), half_norms(kClusters), again(centroids.size()), norms(kClusters);
  k_means(points.data(), kPoints, kDim, kClusters, 1, centroids.data(), half_norms.data());
  k_means(points.data(), kPoints, kDim, kClusters, 1, again.data(), norms.data());
  EXPECT_EQ(centroids, again);
  // From random starts k-means may merge two clusters; most of what there is to gain must be gained.
  double variance = 0.0;
  for (float x : points) variance += double{x} * double{x};
  EXPECT_LT(mean_distance(points, kDim, centroids, kClusters), 0.1 * variance / kPoints);
  for (int32_t c = 0; c < kClusters; ++c) {
    double square = 0.0;
    for (int32_t d = 0; d < kDim; ++d) square += std::pow(double{centroids[d * kClusters + c]}, 2);
    EXPECT_NEAR(half_norms[c], 0.5 * square, 1e-6 * (1 + square));
  }
}

// Fewer different points than centroids: no centroid is lost to NaN, and every point is met exactly.
TEST(KMeans, SurvivesEmptyClusters) {
  constexpr int32_t kDim = 2, kPoints = 64, kCount = 16;
  std::vector<float> points;
  for (int32_t i = 0; i < kPoints; ++i) points.insert(points.end(), {static_cast<float>(i % 5), 1.0f});
  std::vector<float> centroids(kDim * kCount), half_norms(kCount);
  k_means(points.data(), kPoints, kDim, kCount, 0, centroids.data(), half_norms.data());
  for (float x : centroids) EXPECT_TRUE(std::isfinite(x));
  EXPECT_NEAR(mean_distance(points, kDim, centroids, kCount), 0.0, 1e-12);
}

// Codes are the nearest levels of each channel, and the score adds up what they stand for.
TEST(ChannelCodes, CodesAndScoresMatchTheReference) {
  for (const std::string name : {"ds16", "ds16:2bit", "ds32", "ds32:2bit"}) {
    for (const auto& [head_dim, group] : {std::pair{32, 1}, std::pair{64, 4}, std::pair{128, 7}}) {
      SCOPED_TRACE(name + " head_dim " + std::to_string(head_dim) + " group " + std::to_string(group));
      const Case c(name, head_dim, group, 16 * 9 + 3, DType::bf16, kSeed + 1);
      const auto& selector = dynamic_cast<const ChannelCodeSelector&>(*c.selector);
      const TrainedChannels channels = selector.trained_channels(c.trained.data());
      const int32_t num_channels = name.starts_with("ds16") ? 16 : 32;
      const double middle = (selector.num_levels() - 1) / 2.0;
      const auto scores = c.scores();
      EXPECT_EQ(std::set<int32_t>(channels.ids, channels.ids + num_channels).size(), static_cast<size_t>(num_channels));
      for (int32_t token = 0; token < c.num_tokens; ++token) {
        std::vector<double> expected(static_cast<size_t>(group)), magnitude(expected.size());
        for (int32_t i = 0; i < num_channels; ++i) {
          const double key = c.keys[int64_t{token} * head_dim + channels.ids[i]];
          const double position = (key - channels.means[i]) / channels.steps[i] + middle;
          const int32_t code = selector.code(c.entry(token / 16), token % 16, i);
          const double nearest = std::clamp(position, 0.0, 2 * middle);
          EXPECT_LE(std::abs(code - nearest), 0.5 + 1e-4) << "token " << token << " channel " << i;
          for (int32_t query = 0; query < group; ++query) {
            const double part =
                c.q[query * head_dim + channels.ids[i]] * (channels.means[i] + channels.steps[i] * (code - middle));
            expected[query] += part;
            magnitude[query] += std::abs(part);
          }
        }
        for (int32_t query = 0; query < group; ++query) {
          const double step = selector.table_step(c.state.data(), query);
          const double bound = 0.5 * step * selector.num_groups() * (1 + 1e-4) +
                               64 * kEps32 * (magnitude[query] + 31 * step * selector.num_groups());
          EXPECT_NEAR(scores[query][token], expected[query], bound) << "token " << token << " query " << query;
        }
      }
    }
  }
}

std::vector<float> keys_with_spread(int32_t num_tokens, int32_t head_dim, const std::vector<float>& spread, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> keys;
  for (int32_t i = 0; i < num_tokens * head_dim; ++i) {
    keys.push_back(3.0f + spread[static_cast<size_t>(i % head_dim)] * normal(random));
  }
  return keys;
}

TEST(ChannelCodes, TrainingTakesTheChannelsThatTellTokensApart) {
  constexpr int32_t kDim = 64;
  std::vector<float> spread(kDim, 0.1f);
  std::set<int32_t> wide;
  for (int32_t i = 0; i < 16; ++i) {
    spread[static_cast<size_t>(4 * i)] = 2.0f;
    wide.insert(4 * i);
  }
  auto keys = keys_with_spread(ChannelCodeSelector::kTrainingTokens, kDim, spread, kSeed);
  keys[1] = 1e6f;  // an attention sink among the first tokens decides nothing
  const ChannelCodeSelector selector({1, 1, 1, kDim, DType::f32}, 16, 4, {});
  std::vector<std::byte> trained(static_cast<size_t>(selector.trained_bytes()));
  ASSERT_TRUE(selector.train({0, 0}, keys.data(), ChannelCodeSelector::kTrainingTokens, trained.data()).ok());
  const TrainedChannels channels = selector.trained_channels(trained.data());
  EXPECT_EQ(std::set<int32_t>(channels.ids, channels.ids + 16), wide);
  for (int32_t i = 0; i < 16; ++i) {
    EXPECT_NEAR(channels.means[i], 3.0, 0.5);
    EXPECT_NEAR(channels.steps[i], 2.0 * 0.3352, 0.1);
  }
}

class ChannelFiles : public testing::Test {
 protected:
  std::string write(const std::string& text) {
    const std::string path = testing::TempDir() + "rarefy_channels_" + std::to_string(count_++) + ".json";
    std::ofstream(path) << text;
    paths_.push_back(path);
    return path;
  }
  ~ChannelFiles() override {
    for (const std::string& path : paths_) std::filesystem::remove(path);
  }
  static std::string list(int32_t first, int32_t count) {
    std::string text = "[";
    for (int32_t i = 0; i < count; ++i) {
      if (i > 0) text += ',';
      text += std::to_string(first + i);
    }
    return text + "]";
  }
  int count_ = 0;
  std::vector<std::string> paths_;
};

TEST_F(ChannelFiles, NameTheChannelsOfEachHead) {
  const SelectorShape shape{2, 2, 1, 64, DType::f32};
  const std::string path = write(R"({"head_dim": 64, "layers": [[)" + list(40, 20) + "," + list(0, 16) + "], []]}");
  const auto made = make_selector("ds16:channels=" + path, shape);
  ASSERT_TRUE(made) << made.status().to_string();
  EXPECT_EQ((*made)->name(), "ds16:channels=" + path);
  const auto& selector = dynamic_cast<const ChannelCodeSelector&>(**made);
  const auto keys = keys_with_spread(ChannelCodeSelector::kTrainingTokens, 64, std::vector<float>(64, 1.0f), kSeed);
  std::vector<std::byte> trained(static_cast<size_t>(selector.trained_bytes()));
  for (int32_t kv_head : {0, 1}) {
    ASSERT_TRUE(selector.train({0, kv_head}, keys.data(), ChannelCodeSelector::kTrainingTokens, trained.data()).ok());
    const TrainedChannels channels = selector.trained_channels(trained.data());
    for (int32_t i = 0; i < 16; ++i) EXPECT_EQ(channels.ids[i], (kv_head == 0 ? 40 : 0) + i);
  }
  EXPECT_EQ(selector.train({1, 0}, keys.data(), ChannelCodeSelector::kTrainingTokens, trained.data()).code(),
            StatusCode::invalid_argument);
}

TEST_F(ChannelFiles, ThatDoNotFitAreRefused) {
  const SelectorShape shape{1, 1, 1, 64, DType::f32};
  for (const std::string& text :
       {std::string("no json"), std::string("[]"), std::string(R"({"head_dim": 64})"),
        R"({"head_dim": 32, "layers": [[)" + list(0, 16) + "]]}", std::string(R"({"head_dim": 64, "layers": []})"),
        R"({"head_dim": 64, "layers": [[)" + list(0, 15) + "]]}", R"({"head_dim": 64, "layers": [[)" + list(50, 16) + "]]}",
        R"({"head_dim": 64, "layers": [[)" + list(0, 16) + "," + list(0, 16) + "]]}",
        std::string(R"({"head_dim": 64, "layers": [[[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,0]]]})"),
        std::string(R"({"head_dim": 64, "layers": [[["a",1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]]]})"),
        std::string(R"({"head_dim": 64, "layers": [3]})")}) {
    const auto made = make_selector("ds16:channels=" + write(text), shape);
    ASSERT_FALSE(made) << text;
    EXPECT_EQ(made.status().code(), StatusCode::invalid_argument) << text;
    EXPECT_NE(made.status().message().find("channels="), std::string::npos) << made.status().message();
  }
  EXPECT_EQ(make_selector("ds16:channels=/does/not/exist.json", shape).status().code(), StatusCode::not_found);
}

TEST(Training, RefusesKeysThatAreNotFinite) {
  for (const std::string name : {"pq16x4", "ds16", "quest16+pq16x4"}) {
    const SelectorShape shape{1, 1, 1, 64, DType::f32};
    const auto selector = *make_selector(name, shape);
    auto keys = keys_with_spread(selector->training_tokens(), 64, std::vector<float>(64, 1.0f), kSeed);
    AlignedBuffer trained;
    trained.reserve(static_cast<size_t>(selector->trained_bytes()));
    EXPECT_TRUE(selector->train({0, 0}, keys.data(), selector->training_tokens(), trained.data()).ok());
    keys[keys.size() / 2] = test::kNan;
    const Status status = selector->train({3, 1}, keys.data(), selector->training_tokens(), trained.data());
    EXPECT_EQ(status.code(), StatusCode::invalid_argument) << name;
    EXPECT_NE(status.message().find("layer 3"), std::string::npos) << status.message();
  }
}

}  // namespace
}  // namespace rarefy
