// Replay against plain loops in double: errors, mass, recall, overlap, bytes; stored lists of both scopes.
#include "rarefy/engine/replay.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/support/capture_files.h"
#include "tests/support/model_folder.h"

namespace rarefy {
namespace {

using testing::CaptureData;
using testing::small_capture;
using testing::TemporaryFolder;

Capture load(const CaptureData& data) {
  const TemporaryFolder folder;  // a mapped file outlives its name
  folder.write("capture.safetensors", data.bytes());
  auto capture = Capture::load(folder.path() / "capture.safetensors");
  EXPECT_TRUE(capture) << capture.status().to_string();
  return *capture;
}

Policy policy(const std::string& text) {
  auto parsed = Policy::parse(text);
  EXPECT_TRUE(parsed) << parsed.status().to_string();
  return *parsed;
}

// One head of one step, from the data itself.
struct Head {
  std::vector<double> logits;  // [kv_len] f64
  std::vector<std::vector<double>> values;
  std::vector<int32_t> order;  // [kv_len] i32; best first

  std::vector<double> attend(const std::vector<int32_t>& tokens,
                             const std::vector<double>& log_weight) const {  // [count] f64
    double sum = 0.0;
    std::vector<double> out(values[0].size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      const double weight = std::exp(logits[tokens[i]] + log_weight[i]);
      sum += weight;
      for (size_t dim = 0; dim < out.size(); ++dim) out[dim] += weight * values[tokens[i]][dim];
    }
    for (double& value : out) value /= sum;
    return out;
  }
};

Head head_of(const CaptureData& data, size_t slot, int32_t step, int32_t head) {
  Head result;
  const int32_t kv_head = head / 2, kv_len = data.positions[step] + 1;
  for (int32_t token = 0; token < kv_len; ++token) {
    double dot = 0.0;
    std::vector<double> value;
    for (int32_t dim = 0; dim < 32; ++dim) {
      const size_t at = (static_cast<size_t>(token) * 2 + kv_head) * 32 + dim;
      dot += static_cast<double>(data.queries[slot][(static_cast<size_t>(step) * 4 + head) * 32 + dim]) *
             to_float(data.keys[slot][at]);
      value.push_back(to_float(data.values[slot][at]));
    }
    dot *= data.info.attention_scale;
    const double cap = data.info.logit_soft_cap;
    result.logits.push_back(cap > 0.0 ? cap * std::tanh(dot / cap) : dot);
    result.values.push_back(std::move(value));
  }
  result.order.resize(static_cast<size_t>(kv_len));
  std::iota(result.order.begin(), result.order.end(), 0);
  std::sort(result.order.begin(), result.order.end(),
            [&](int32_t a, int32_t b) { return result.logits[a] > result.logits[b]; });
  return result;
}

double relative(const std::vector<double>& got, const std::vector<double>& exact) {
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - exact[i]) * (got[i] - exact[i]);
    norm += exact[i] * exact[i];
  }
  return std::sqrt(difference / norm);
}

std::vector<int32_t> all_tokens(int32_t count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

// Every third token of each list, in every step; `num_lists` 2 or 4.
std::vector<LayerIndexSet> thirds(const CaptureData& data, int32_t num_lists) {
  std::vector<LayerIndexSet> sets;
  for (const int32_t layer : data.info.layers) {
    sets.push_back({layer, {}});
    IndexSet& set = sets.back().set;
    set.resize(data.info.num_steps, num_lists, data.info.kv_len);
    for (int32_t step = 0; step < data.info.num_steps; ++step) {
      for (int32_t list = 0; list < num_lists; ++list) {
        int32_t& count = set.count(step, list);
        count = 0;
        for (int32_t token = list % 3; token <= data.positions[step]; token += 3) {
          set.token_ids(step, list)[count] = token;
          set.log_weight(step, list)[count++] = token % 2 == 0 ? 0.0f : 0.75f;
        }
      }
    }
  }
  return sets;
}

// The kernels hold queries and probabilities in bf16 at worst: 2^-8 of each factor, twice, on sums of like terms.
constexpr double kKernelError = 0.02;

TEST(Replay, AFullBudgetIsDense) {
  const CaptureData data = small_capture(11);
  const auto arms = replay(load(data), {}, {Policy{}, policy("total=1.0 index=sign min=1")});
  ASSERT_TRUE(arms) << arms.status().to_string();
  ASSERT_EQ(arms->size(), 2u);
  for (const ReplayArm& arm : *arms) {
    EXPECT_EQ(arm.rows.size(), 2u * 3u * 4u);
    EXPECT_EQ(arm.traffic.bytes_ratio(), 1.0);
    for (const ReplayRow& row : arm.rows) {
      EXPECT_LT(row.error, kKernelError);
      EXPECT_EQ(row.mass, 1.0);
      EXPECT_EQ(row.recall, 1.0);
      EXPECT_EQ(row.overlap, 1.0);
      EXPECT_EQ(row.exact_error, 0.0);
      EXPECT_EQ(row.num_selected, data.positions[row.step] + 1);
    }
  }
}

TEST(Replay, StoredListsAreMeasuredByDefinition) {
  for (const int32_t num_lists : {2, 4}) {
    for (const float cap : {0.0f, 2.0f}) {
      CaptureData data = small_capture(12);
      data.info.logit_soft_cap = cap;
      const auto sets = thirds(data, num_lists);
      const auto arms = replay(load(data), {}, {}, {sets});
      ASSERT_TRUE(arms) << arms.status().to_string();
      ASSERT_EQ(arms->front().rows.size(), 2u * 3u * 4u);
      for (const ReplayRow& row : arms->front().rows) {
        const size_t slot = row.layer == 0 ? 0 : 1;
        const Head head = head_of(data, slot, row.step, row.head);
        const int32_t kv_len = data.positions[row.step] + 1, list = num_lists == 2 ? row.head / 2 : row.head;
        std::vector<int32_t> tokens;
        std::vector<double> weights;
        for (int32_t token = list % 3; token < kv_len; token += 3) {
          tokens.push_back(token);
          weights.push_back(token % 2 == 0 ? 0.0 : 0.75);
        }
        const auto everything = all_tokens(kv_len);
        const std::vector<double> exact = head.attend(everything, std::vector<double>(everything.size(), 0.0));
        const double error = relative(head.attend(tokens, weights), exact);
        EXPECT_NEAR(row.error, error, kKernelError * (1.0 + error));
        ASSERT_EQ(row.num_selected, static_cast<int32_t>(tokens.size()));

        double total = 0.0, held = 0.0;
        for (const double logit : head.logits) total += std::exp(logit);
        for (const int32_t token : tokens) held += std::exp(head.logits[token]);
        EXPECT_NEAR(row.mass, held / total, 1e-9);
        const std::vector<int32_t> best(head.order.begin(), head.order.begin() + static_cast<int64_t>(tokens.size()));
        const auto hits = [&](const std::vector<int32_t>& from) {
          return std::count_if(from.begin(), from.end(),
                               [&](int32_t token) { return std::binary_search(tokens.begin(), tokens.end(), token); });
        };
        EXPECT_DOUBLE_EQ(row.recall, static_cast<double>(hits(best)) / static_cast<double>(tokens.size()));

        // The group's best: by the larger probability of its two heads.
        const int32_t first = row.head / 2 * 2;
        std::vector<double> largest(static_cast<size_t>(kv_len), 0.0);
        for (const int32_t other : {first, first + 1}) {
          const Head one = head_of(data, slot, row.step, other);
          double sum = 0.0;
          for (const double logit : one.logits) sum += std::exp(logit);
          for (int32_t token = 0; token < kv_len; ++token)
            largest[token] = std::max(largest[token], std::exp(one.logits[token]) / sum);
        }
        std::vector<int32_t> of_group = all_tokens(kv_len);
        std::sort(of_group.begin(), of_group.end(), [&](int32_t a, int32_t b) { return largest[a] > largest[b]; });
        of_group.resize(tokens.size());
        const auto shared = static_cast<double>(hits(of_group));
        EXPECT_DOUBLE_EQ(row.overlap, shared / (2.0 * static_cast<double>(tokens.size()) - shared));
        EXPECT_NEAR(row.exact_error, relative(head.attend(of_group, std::vector<double>(tokens.size(), 0.0)), exact), 1e-9);
        EXPECT_GT(row.estimated_error, 0.0);
      }
      // Lists of query heads share no rows.
      EXPECT_NEAR(arms->front().traffic.bytes_ratio(), num_lists == 2 ? 1.0 / 3.0 : 2.0 / 3.0, 0.01);
      EXPECT_NEAR(arms->front().traffic.density(), 1.0 / 3.0, 0.01);
    }
  }
}

TEST(Replay, KeptListsReproduceTheirPolicy) {
  const CaptureData data = small_capture(13, 700, 4, 1.5f);
  const Capture capture = load(data);
  ReplayOptions options;
  options.keep_sets = true;
  options.seed = 5;
  const auto arms = replay(capture, options, {policy("total=60 index=sign min=1 spend=priority")});
  ASSERT_TRUE(arms) << arms.status().to_string();
  const auto again = replay(capture, {}, {}, {arms->front().lists});
  ASSERT_TRUE(again) << again.status().to_string();
  ASSERT_EQ(arms->front().rows.size(), again->front().rows.size());
  bool sampled = false;
  for (size_t i = 0; i < arms->front().rows.size(); ++i) {
    const ReplayRow &a = arms->front().rows[i], &b = again->front().rows[i];
    EXPECT_EQ(a.error, b.error);
    EXPECT_EQ(a.mass, b.mass);
    EXPECT_EQ(a.recall, b.recall);
    EXPECT_EQ(a.overlap, b.overlap);
    EXPECT_EQ(a.estimated_error, b.estimated_error);
    EXPECT_EQ(a.num_selected, 60);
    sampled |= a.estimated_error > 0.0f;
  }
  EXPECT_TRUE(sampled);
}

TEST(Replay, GrowingByTokensEqualsBuildingAtOnce) {
  // The last step of a capture whose steps lie apart, and of one with that step alone.
  CaptureData apart = small_capture(14, 600, 3);
  apart.positions = {200, 431, 599};
  CaptureData alone = small_capture(14, 600, 3);
  alone.positions = {599};
  alone.info.num_steps = 1;
  for (size_t slot = 0; slot < 2; ++slot)
    alone.queries[slot] = {apart.queries[slot].end() - 4 * 32, apart.queries[slot].end()};
  const std::vector<Policy> policies = {policy("total=50 index=q2 min=1"), policy("total=50 index=quest16:int8 min=1"),
                                        policy("total=50 index=sign64 min=1")};
  const auto grown = replay(load(apart), {}, policies), built = replay(load(alone), {}, policies);
  ASSERT_TRUE(grown && built);
  for (size_t arm = 0; arm < policies.size(); ++arm) {
    const auto& rows = (*built)[arm].rows;
    const auto& all = (*grown)[arm].rows;
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(rows[i].error, all[all.size() - rows.size() + i].error) << policies[arm].to_string();
      EXPECT_EQ(rows[i].mass, all[all.size() - rows.size() + i].mass) << policies[arm].to_string();
    }
  }
}

TEST(Replay, OracleTopKFindsWhatIsBest) {
  const CaptureData data = small_capture(15, 600, 2, 1.5f);
  const auto arms = replay(load(data), {}, {policy("total=64 sink=0 local=0 index=oracle spend=topk min=1")});
  ASSERT_TRUE(arms) << arms.status().to_string();
  for (const ReplayRow& row : arms->front().rows) {
    EXPECT_GT(row.overlap, 0.8);  // log-sum-exp from a sample, scores in bf16: not each of the last ones
    EXPECT_EQ(row.estimated_error, 0.0);
  }
}

TEST(Replay, RefusesWhatDoesNotFit) {
  const CaptureData data = small_capture(16);
  const Capture capture = load(data);
  const auto refused = [&](const ReplayOptions& options, const std::vector<Policy>& policies,
                           const std::vector<std::vector<LayerIndexSet>>& stored, const std::string& part) {
    const auto arms = replay(capture, options, policies, stored);
    ASSERT_FALSE(arms) << "expected a refusal with '" << part << "'";
    EXPECT_NE(arms.status().message().find(part), std::string::npos) << arms.status().to_string();
  };
  refused({}, {}, {}, "expected a policy or an index set");
  refused({.layers = {1}}, {Policy{}}, {}, "got layer 1");
  refused({.num_steps = 4}, {Policy{}}, {}, "got 4");
  refused({.num_seeds = 0}, {Policy{}}, {}, "got 0");
  refused({}, {policy("50x dense_layers=3")}, {}, "3");
  auto sets = thirds(data, 2);
  sets.pop_back();
  refused({}, {}, {sets}, "lists of layer 2, got none");
  refused({}, {}, {thirds(data, 3)}, "got 3");
  sets = thirds(data, 2);
  sets[1].set.token_ids(1, 0)[4] = 299;  // kv_len of step 1 is 299
  sets[1].set.count(1, 0) = 5;
  refused({}, {}, {sets}, "token_ids[1][0][4]");
  CaptureData longer = small_capture(16, 300, 4);
  refused({}, {}, {thirds(longer, 2)}, "expected 3 steps");
  int64_t calls = 0;
  refused({.progress = [&](int64_t, int64_t) { return ++calls < 2; }}, {Policy{}}, {}, "cancelled");
  EXPECT_EQ(calls, 2);
}

}  // namespace
}  // namespace rarefy
