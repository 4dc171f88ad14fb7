// Sessions of every family against Hugging Face transformers, through the real caches: chunked prefill, decode, fork, resume,
// preemption, sparse decode. Fixtures by make_model_fixtures.py.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "rarefy/engine/session.h"
#include "tests/support/model_folder.h"

namespace rarefy {
namespace {

const std::filesystem::path kModels = std::filesystem::path(RAREFY_SOURCE_DIR) / "tests/golden/models";
constexpr int32_t kVocab = 384;
constexpr int32_t kNumTokens = 80;
constexpr int32_t kNumKept = 16;  // last positions with a reference

std::vector<int32_t> token_ids() {
  std::vector<int32_t> ids(kNumTokens);  // [kNumTokens] i32
  for (int64_t i = 0; i < kNumTokens; ++i) ids[i] = static_cast<int32_t>((7 * i * i + 3 * i + 5) % kVocab);
  return ids;
}

Policy policy(const char* text) {
  auto parsed = Policy::parse(text);
  EXPECT_TRUE(parsed) << parsed.status().to_string();
  return *parsed;
}

class EngineGolden : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    std::ifstream file(kModels / "meta.json");
    const auto facts = nlohmann::json::parse(file).at("cases").at(GetParam());
    folder_.copy_from(kModels / facts.at("weights_from").get<std::string>());
    folder_.copy_from(kModels / GetParam());
    const auto reference = testing::read_safetensors(kModels / GetParam() / "reference.safetensors").at("prefill_logits");
    reference_.resize(reference.bytes.size() / sizeof(float));
    std::memcpy(reference_.data(), reference.bytes.data(), reference.bytes.size());
    auto model = Model::load(folder_.path(), {.compute = ComputeType::f32});
    ASSERT_TRUE(model) << model.status().to_string();
    model_ = std::make_shared<const Model>(*std::move(model));
  }

  // Pages of 4 tokens: windows of 8 and 12 give pages back all the time.
  std::shared_ptr<Engine> make_engine(int32_t page_size = 4, int64_t max_tokens = 4096, int32_t prefill_chunk = 96,
                                      int32_t snapshot_tokens = 0) {
    auto engine = Engine::make(model_, {.ctx_size = std::min<int32_t>(512, static_cast<int32_t>(max_tokens)),
                                        .kv_dtype = DType::f32,
                                        .page_size = page_size,
                                        .max_tokens = max_tokens,
                                        .prefill_chunk = prefill_chunk,
                                        .snapshot_tokens = snapshot_tokens});
    EXPECT_TRUE(engine) << engine.status().to_string();
    return *engine;
  }

  double tolerance() const { return GetParam().starts_with("qwen3_5") ? 1e-3 : 2e-4; }
  // Largest difference of logits after `position` from the reference.
  double error(const std::vector<float>& logits, int32_t position) const {
    double worst = 0.0;
    const float* expected = reference_.data() + (position - (kNumTokens - kNumKept)) * kVocab;  // [kVocab] f32
    for (int32_t i = 0; i < kVocab; ++i) {
      const double difference = std::abs(static_cast<double>(logits[i]) - expected[i]);
      if (!(difference <= worst)) worst = difference;  // NaN counts as the largest
    }
    return worst;
  }

  static void prefill(Session& session, int32_t from, int32_t to, std::vector<float>* logits = nullptr) {
    const auto ids = token_ids();
    if (logits != nullptr) logits->assign(kVocab, NAN);
    const Status status = session.prefill({ids.data() + from, static_cast<size_t>(to - from)}, {},
                                          logits == nullptr ? nullptr : logits->data());
    ASSERT_TRUE(status.ok()) << status.to_string();
  }
  static std::vector<float> step(Session& session, int32_t token) {
    std::vector<float> logits(kVocab, NAN);  // [kVocab] f32
    const Status status = session.decode(token, logits.data());
    EXPECT_TRUE(status.ok()) << status.to_string();
    return logits;
  }
  // Decodes the text from the session's length to its end and compares every position that has a reference.
  void expect_rest(Session& session) {
    const auto ids = token_ids();
    for (int32_t position = session.length(); position < kNumTokens; ++position) {
      const auto logits = step(session, ids[position]);
      if (position < kNumTokens - kNumKept) continue;
      EXPECT_LE(error(logits, position), tolerance()) << "position " << position;
    }
  }
  bool is_hybrid() const {
    return model_->config().layers_of(LayerKind::full_attention).size() < model_->config().layers.size();
  }

  testing::TemporaryFolder folder_;
  std::vector<float> reference_;  // [kNumKept, kVocab] f32
  std::shared_ptr<const Model> model_;
};

TEST_P(EngineGolden, PrefillInAnyTwoChunks) {
  auto engine = make_engine();
  std::vector<float> logits;
  Session whole = engine->new_session();
  prefill(whole, 0, kNumTokens, &logits);
  EXPECT_LE(error(logits, kNumTokens - 1), tolerance());
  for (int32_t boundary = 1; boundary < kNumTokens; ++boundary) {
    Session session = engine->new_session();
    prefill(session, 0, boundary);
    prefill(session, boundary, kNumTokens, &logits);
    EXPECT_LE(error(logits, kNumTokens - 1), tolerance()) << "boundary at " << boundary;
  }
  for (const int32_t chunk : {1, 3, 17}) {
    Session session = make_engine(4, 4096, chunk)->new_session();
    prefill(session, 0, kNumTokens, &logits);
    EXPECT_LE(error(logits, kNumTokens - 1), tolerance()) << "chunks of " << chunk;
  }
}

TEST_P(EngineGolden, DecodeAfterAnyPrefill) {
  for (const int32_t page_size : {1, 4, 64}) {
    auto engine = make_engine(page_size);
    for (const int32_t first : {1, 7, 8, 9, 50, 64}) {
      Session session = engine->new_session();
      prefill(session, 0, first);
      expect_rest(session);
    }
  }
}

TEST_P(EngineGolden, ForksGoTheirOwnWays) {
  auto engine = make_engine();
  Session session = engine->new_session();
  prefill(session, 0, 61);
  {
    Session other = session.fork();
    for (int32_t token = 3; token < 33; ++token) step(other, token);
    Session third = other.fork();
    step(third, 9);
  }
  Session copy = session.fork();
  expect_rest(copy);
  expect_rest(session);
}

TEST_P(EngineGolden, ResumesFromThePrefix) {
  auto engine = make_engine();
  Session session = engine->new_session();
  prefill(session, 0, 40);
  prefill(session, 40, 62);
  for (int32_t token = 3; token < 33; ++token) step(session, token);  // an answer that is dropped
  // All lengths are reusable where every layer keeps everything; else the ends of prefills.
  EXPECT_EQ(session.reusable_length(92), 92);
  EXPECT_EQ(session.reusable_length(62), 62);
  EXPECT_EQ(session.reusable_length(55), is_hybrid() ? 40 : 55);
  EXPECT_EQ(session.reusable_length(39), is_hybrid() ? 0 : 39);
  if (is_hybrid()) {
    const Status status = session.truncate(55);
    EXPECT_EQ(status.code(), StatusCode::invalid_argument);
    EXPECT_NE(status.message().find("40"), std::string::npos) << status.message();
  }
  Session other = session.fork();
  ASSERT_TRUE(session.truncate(62).ok());
  expect_rest(session);
  // Twice from the same place, and from an earlier one through a fork, which has the snapshots too.
  ASSERT_TRUE(session.truncate(62).ok());
  expect_rest(session);
  ASSERT_TRUE(other.truncate(40).ok());
  prefill(other, 40, 63);
  expect_rest(other);
}

TEST_P(EngineGolden, SnapshotsInsideAPrefill) {
  Session session = make_engine(4, 4096, 8, 24)->new_session();
  prefill(session, 0, 70);
  EXPECT_EQ(session.reusable_length(60), is_hybrid() ? 48 : 60);
  ASSERT_TRUE(session.truncate(session.reusable_length(60)).ok());
  expect_rest(session);
}

TEST_P(EngineGolden, PreemptedAndResumed) {
  // Room for one sequence: the other has to give its pages back, and is computed again.
  auto engine = make_engine(4, 84);
  Session first = engine->new_session(), second = engine->new_session();
  prefill(first, 0, 62);
  EXPECT_EQ(second.prefill(token_ids()).code(), StatusCode::resource_exhausted);
  EXPECT_EQ(second.length(), 0);
  ASSERT_TRUE(first.truncate(0).ok());
  prefill(second, 0, 65);
  expect_rest(second);
  ASSERT_TRUE(second.truncate(0).ok());
  prefill(first, 0, 62);
  expect_rest(first);
}

TEST_P(EngineGolden, SparseAtFullBudgetEqualsDense) {
  auto engine = make_engine(16);
  Session context = engine->new_session();
  prefill(context, 0, kNumTokens - 1);
  Session dense = context.fork(), full = context.fork(), almost = context.fork();
  const int32_t last = token_ids().back();
  const auto expected = step(dense, last);
  EXPECT_LE(error(expected, kNumTokens - 1), tolerance());
  ASSERT_TRUE(full.set_policy(policy("total=80 min=1 index=oracle spend=topk")).ok());
  EXPECT_EQ(step(full, last), expected);
  // One token less: the lists' path, which leaves out the token of least weight, at most 1/80 of the mass.
  ASSERT_TRUE(almost.set_policy(policy("total=79 min=1 index=oracle spend=topk")).ok());
  const auto got = step(almost, last);
  double worst = 0.0;
  for (int32_t i = 0; i < kVocab; ++i) worst = std::max(worst, std::abs(static_cast<double>(got[i]) - expected[i]));
  EXPECT_LE(worst, 0.1);
  EXPECT_GT(almost.stats().traffic.sparse_layer_steps, 0);
}

TEST_P(EngineGolden, OnlyFullAttentionIsSparse) {
  auto engine = make_engine(64);
  Session session = engine->new_session();
  prefill(session, 0, kNumTokens);
  prefill(session, 0, kNumTokens);
  prefill(session, 0, kNumTokens);
  ASSERT_TRUE(session.set_policy(policy("50x min=1")).ok());
  constexpr int32_t kSteps = 5;
  for (int32_t token = 3; token < 3 + kSteps; ++token) step(session, token);

  const ModelConfig& config = model_->config();
  const RunStats& stats = session.stats();
  ASSERT_EQ(stats.layers.size(), config.layers.size());
  Traffic sum;
  for (size_t layer = 0; layer < stats.layers.size(); ++layer) {
    const Traffic& traffic = stats.layers[layer].traffic;
    sum.add(traffic);
    EXPECT_EQ(stats.layers[layer].kind, config.layers[layer]);
    EXPECT_EQ(traffic.dense_layer_steps, 0);
    if (config.layers[layer] == LayerKind::full_attention) {
      EXPECT_EQ(traffic.sparse_layer_steps, kSteps);
      EXPECT_NEAR(traffic.density(), 0.02, 0.003);
      EXPECT_EQ(traffic.fixed_bytes, 0);
      continue;
    }
    EXPECT_EQ(traffic.sparse_layer_steps, 0);
    EXPECT_EQ(traffic.tokens_cached, 0);
    if (config.layers[layer] == LayerKind::sliding_attention) {
      EXPECT_EQ(traffic.sliding_layer_steps, kSteps);
      EXPECT_EQ(traffic.fixed_bytes, int64_t{kSteps} * config.sliding_window * config.num_kv_heads * config.head_dim * 8);
    } else {
      EXPECT_EQ(traffic.linear_layer_steps, kSteps);
      EXPECT_EQ(traffic.fixed_bytes, kSteps * config.linear.state_floats() * 8);
    }
  }
  EXPECT_EQ(sum.sparse_layer_steps, stats.traffic.sparse_layer_steps);
  EXPECT_EQ(sum.fixed_bytes, stats.traffic.fixed_bytes);
  const auto json = nlohmann::json::parse(stats.to_json());
  ASSERT_EQ(json.at("layers").size(), config.layers.size());
  EXPECT_EQ(json.at("layers").at(0).at("kind"), to_string(config.layers[0]));
}

INSTANTIATE_TEST_SUITE_P(Cases, EngineGolden,
                         ::testing::Values("llama", "qwen2", "qwen2_window", "gemma3", "gemma3_caps", "ministral3",
                                           "ministral3_fp8", "qwen3_5"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace rarefy
