// The engine on a random tiny checkpoint: forks, policies, audits, limits.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <thread>

#include "rarefy/engine/generate.h"
#include "rarefy/engine/session.h"
#include "tests/support/tiny_checkpoint.h"

namespace rarefy {
namespace {

constexpr int32_t kContext = 700;

class EngineTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    checkpoint_ = new testing::TinyCheckpoint();
    auto model = Model::load(checkpoint_->folder(), {.compute = ComputeType::f32});
    ASSERT_TRUE(model) << model.status().to_string();
    model_ = new std::shared_ptr<const Model>(std::make_shared<const Model>(*std::move(model)));
  }
  static void TearDownTestSuite() {
    delete model_;
    delete checkpoint_;
  }

  static std::shared_ptr<Engine> make_engine(EngineOptions options = {.ctx_size = 1024, .max_tokens = 4096}) {
    auto engine = Engine::make(*model_, options);
    EXPECT_TRUE(engine) << engine.status().to_string();
    return *engine;
  }
  static std::vector<int32_t> tokens(int32_t count, int32_t salt = 0) {
    std::vector<int32_t> ids(count);  // [count] i32
    for (int32_t i = 0; i < count; ++i) ids[i] = (7 * i * i + 3 * i + 5 + 11 * salt) % 256;
    return ids;
  }
  static Policy policy(const char* text) {
    auto parsed = Policy::parse(text);
    EXPECT_TRUE(parsed) << parsed.status().to_string();
    return *parsed;
  }
  // Logits of one decode step after the standard context.
  static std::vector<float> step(Session& session, int32_t token) {
    std::vector<float> logits(testing::TinyCheckpoint::kVocabSize);  // [vocab_size] f32
    const Status status = session.decode(token, logits.data());
    EXPECT_TRUE(status.ok()) << status.to_string();
    return logits;
  }

  static testing::TinyCheckpoint* checkpoint_;
  static std::shared_ptr<const Model>* model_;
};
testing::TinyCheckpoint* EngineTest::checkpoint_ = nullptr;
std::shared_ptr<const Model>* EngineTest::model_ = nullptr;

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0.0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::fabs(double{a[i]} - b[i]));
  return worst;
}

TEST_F(EngineTest, IncrementalDecodeMatchesPrefill) {
  auto engine = make_engine({.ctx_size = 1024, .kv_dtype = DType::f32, .max_tokens = 4096, .prefill_chunk = 96});
  const auto ids = tokens(150);
  std::vector<float> whole(testing::TinyCheckpoint::kVocabSize);  // [vocab_size] f32
  Session a = engine->new_session();
  ASSERT_TRUE(a.prefill(ids, {}, whole.data()).ok());
  Session b = engine->new_session();
  ASSERT_TRUE(b.prefill({ids.data(), 100}).ok());
  std::vector<float> stepped;
  for (size_t i = 100; i < ids.size(); ++i) stepped = step(b, ids[i]);
  EXPECT_LT(distance(whole, stepped), 2e-4);
}

TEST_F(EngineTest, AFullBudgetOfSampledTokensEqualsDense) {
  auto engine = make_engine();
  Session context = engine->new_session();
  ASSERT_TRUE(context.prefill(tokens(kContext)).ok());
  Session dense = context.fork();
  Session sparse = context.fork();
  // All but one token: the sparse path runs, and its answer can differ only by that token.
  ASSERT_TRUE(sparse.set_policy(policy("total=700 min=1 index=oracle spend=topk")).ok());
  const auto exact = step(dense, 42);
  const auto got = step(sparse, 42);
  EXPECT_EQ(sparse.stats().traffic.sparse_layer_steps, 2);
  EXPECT_NEAR(sparse.stats().traffic.density(), 700.0 / 701.0, 1e-9);
  EXPECT_LT(distance(exact, got), 0.02);
  Session full = context.fork();
  ASSERT_TRUE(full.set_policy(policy("total=701 min=1 index=oracle spend=topk")).ok());
  EXPECT_EQ(step(full, 42), exact);
}

TEST_F(EngineTest, ForksShareTheContextAndLeaveItUntouched) {
  auto engine = make_engine();
  Session context = engine->new_session();
  ASSERT_TRUE(context.prefill(tokens(kContext)).ok());
  Session before = context.fork();
  const auto expected = step(before, 17);
  {
    Session other = context.fork();
    ASSERT_TRUE(other.set_policy(policy("10x")).ok());
    for (int32_t token = 0; token < 40; ++token) step(other, token);
    EXPECT_EQ(other.length(), kContext + 40);
  }
  EXPECT_EQ(context.length(), kContext);
  EXPECT_EQ(step(context, 17), expected);
}

TEST_F(EngineTest, SameRequestSameBitsAloneAndBesideOthers) {
  const auto run_alone = [] {
    auto engine = make_engine();
    Session session = engine->new_session();
    EXPECT_TRUE(session.prefill(tokens(kContext)).ok());
    EXPECT_TRUE(session.set_policy(policy("20x")).ok());
    session.set_seed(9);
    return step(session, 5);
  };
  const auto expected = run_alone();
  EXPECT_EQ(run_alone(), expected);

  auto engine = make_engine();
  Session session = engine->new_session();
  std::vector<Session> others;
  for (int32_t i = 0; i < 3; ++i) {
    others.push_back(engine->new_session());
    ASSERT_TRUE(others.back().prefill(tokens(100 + 37 * i, i + 1)).ok());
  }
  ASSERT_TRUE(session.prefill(tokens(kContext)).ok());
  ASSERT_TRUE(session.set_policy(policy("20x")).ok());
  session.set_seed(9);
  std::vector<std::thread> threads;
  for (Session& other : others) {
    threads.emplace_back([&other] {
      for (int32_t token = 0; token < 8; ++token) (void)other.decode(token, nullptr);
    });
  }
  const auto beside = step(session, 5);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(beside, expected);
}

TEST_F(EngineTest, SeedChangesTheSample) {
  auto engine = make_engine();
  Session context = engine->new_session();
  ASSERT_TRUE(context.prefill(tokens(kContext)).ok());
  ASSERT_TRUE(context.set_policy(policy("20x")).ok());
  Session a = context.fork(), b = context.fork(), c = context.fork();
  b.set_seed(1);
  const auto first = step(a, 3);
  EXPECT_NE(first, step(b, 3));
  EXPECT_EQ(first, step(c, 3));
}

TEST_F(EngineTest, AuditsCompareWithDense) {
  auto engine = make_engine();
  Session session = engine->new_session();
  ASSERT_TRUE(session.prefill(tokens(kContext)).ok());
  ASSERT_TRUE(session.set_policy(policy("5x index=oracle spend=priority")).ok());
  session.set_audit({.fraction = 1.0});
  for (int32_t token = 0; token < 10; ++token) step(session, token);
  const RunStats& stats = session.stats();
  EXPECT_EQ(stats.audit.layer_steps, 20);
  EXPECT_EQ(stats.audit.error.count(), 20 * 4);
  EXPECT_GT(stats.audit.error.quantile(0.5), 0.0);
  // With exact scores the estimate is of the size of the truth.
  const double audited = std::sqrt(stats.audit.error.mean_square()), estimated = std::sqrt(stats.estimated_error.mean_square());
  EXPECT_GT(audited, 0.5 * estimated);
  EXPECT_LT(audited, 2.0 * estimated);
  EXPECT_LE(stats.audit.mass.max(), 1.0 + 1e-5);
  EXPECT_GT(stats.audit.mass.quantile(0.5), 0.2);
  // Exact scores: the certificate's 95 % interval covers most errors (one in twenty may fall outside).
  EXPECT_GT(stats.audit.certificate_covered, stats.audit.certificate_pairs * 3 / 4);
  EXPECT_GE(stats.audit.worst.layer, 0);

  Session some = engine->new_session();
  ASSERT_TRUE(some.prefill(tokens(kContext)).ok());
  ASSERT_TRUE(some.set_policy(policy("5x")).ok());
  some.set_audit({.fraction = 0.25});
  for (int32_t token = 0; token < 40; ++token) step(some, token);
  EXPECT_GT(some.stats().audit.layer_steps, 5);
  EXPECT_LT(some.stats().audit.layer_steps, 40);
}

TEST_F(EngineTest, DenseLayersAndShortContextsStayDense) {
  auto engine = make_engine();
  Session session = engine->new_session();
  ASSERT_TRUE(session.prefill(tokens(100)).ok());
  ASSERT_TRUE(session.set_policy(policy("10x")).ok());
  step(session, 1);
  EXPECT_EQ(session.stats().traffic.sparse_layer_steps, 0);
  EXPECT_DOUBLE_EQ(session.stats().traffic.bytes_ratio(), 1.0);

  ASSERT_TRUE(session.prefill(tokens(600)).ok());
  ASSERT_TRUE(session.set_policy(policy("10x dense_layers=0")).ok());
  session.reset_stats();
  step(session, 1);
  EXPECT_EQ(session.stats().traffic.sparse_layer_steps, 1);
  EXPECT_EQ(session.stats().traffic.dense_layer_steps, 1);
}

TEST_F(EngineTest, RefusesWhatDoesNotFit) {
  auto engine = make_engine({.ctx_size = 64, .max_tokens = 64});
  Session session = engine->new_session();
  Status status = session.prefill(tokens(65));
  EXPECT_EQ(status.code(), StatusCode::resource_exhausted);
  EXPECT_NE(status.message().find("ctx_size"), std::string::npos) << status.message();
  EXPECT_EQ(session.length(), 0);
  const std::vector<int32_t> bad = {1, 2, 258};  // [3] i32
  EXPECT_EQ(session.prefill(bad).code(), StatusCode::invalid_argument);
  EXPECT_EQ(session.decode(-1, nullptr).code(), StatusCode::invalid_argument);
  EXPECT_FALSE(Engine::make(*model_, {.ctx_size = 1 << 20}));
  EXPECT_FALSE(Engine::make(nullptr, {}));
  EXPECT_EQ(session.set_policy(policy("10x dense_layers=7")).code(), StatusCode::invalid_argument);
  // The session still works.
  EXPECT_TRUE(session.prefill(tokens(60)).ok());
}

TEST_F(EngineTest, PrefillCanBeCancelledAndContinued) {
  auto engine = make_engine({.ctx_size = 1024, .max_tokens = 2048, .prefill_chunk = 64});
  Session session = engine->new_session();
  int64_t seen = 0;
  const auto ids = tokens(300);
  const Status status = session.prefill(ids, [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 300);
    seen = done;
    return done < 128;
  });
  EXPECT_EQ(status.code(), StatusCode::cancelled);
  EXPECT_EQ(seen, 128);
  EXPECT_EQ(session.length(), 128);
  EXPECT_TRUE(session.prefill({ids.data() + 128, ids.size() - 128}).ok());
}

TEST_F(EngineTest, GenerateStopsAndReproduces) {
  auto engine = make_engine();
  const auto run = [&](uint64_t seed) {
    Session session = engine->new_session();
    EXPECT_TRUE(session.prefill(tokens(kContext)).ok());
    EXPECT_TRUE(session.set_policy(policy("10x")).ok());
    GenerateOptions options;
    options.max_new_tokens = 12;
    options.sampler = {.temperature = 1.0, .seed = seed};
    const std::vector<int32_t> prompt = {10, 20};  // [2] i32
    auto result = generate(session, prompt, options);
    EXPECT_TRUE(result) << result.status().to_string();
    return result->tokens;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));

  Session session = engine->new_session();
  GenerateOptions options;
  EXPECT_FALSE(generate(session, {}, options));
  int32_t count = 0;
  const std::vector<int32_t> prompt = {10};  // [1] i32
  auto cancelled = generate(session, prompt, options, [&](int32_t) { return ++count < 3; });
  ASSERT_TRUE(cancelled);
  EXPECT_EQ(cancelled->reason, StopReason::cancelled);
  EXPECT_EQ(cancelled->tokens.size(), 3u);
}

}  // namespace
}  // namespace rarefy
