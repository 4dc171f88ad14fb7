// The C interface through the shared library, on a random tiny checkpoint. tests/e2e/c_client.c covers the same from C99.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "rarefy/rarefy.h"
#include "tests/support/tiny_checkpoint.h"

namespace rarefy {
namespace {

constexpr int32_t kVocab = testing::TinyCheckpoint::kVocabSize;

class CapiTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    checkpoint_ = new testing::TinyCheckpoint();
    ASSERT_EQ(rarefy_model_load(checkpoint_->folder().c_str(), nullptr, &model_), RAREFY_OK) << rarefy_last_error();
  }
  static void TearDownTestSuite() {
    rarefy_model_free(model_);
    delete checkpoint_;
  }
  void SetUp() override {
    rarefy_engine_options options{};
    options.struct_size = sizeof(options);
    options.ctx_size = 1024;
    options.max_tokens = 4096;
    options.prefill_chunk = 100;
    ASSERT_EQ(rarefy_engine_create(model_, &options, &engine_), RAREFY_OK) << rarefy_last_error();
    ASSERT_EQ(rarefy_session_create(engine_, &session_), RAREFY_OK) << rarefy_last_error();
  }
  void TearDown() override {
    rarefy_session_free(session_);
    rarefy_engine_free(engine_);
  }
  static std::vector<int32_t> tokens(int32_t count) {
    std::vector<int32_t> ids(static_cast<size_t>(count));  // [count] i32
    for (int32_t i = 0; i < count; ++i) ids[static_cast<size_t>(i)] = (7 * i * i + 3 * i + 5) % 256;
    return ids;
  }
  static rarefy_status prefill(rarefy_session* session, int32_t count) {
    const auto ids = tokens(count);
    return rarefy_session_prefill(session, ids.data(), count, nullptr, nullptr, nullptr, 0);
  }
  static int32_t length(const rarefy_session* session) {
    int32_t length = -1;
    EXPECT_EQ(rarefy_session_length(session, &length), RAREFY_OK);
    return length;
  }
  static std::string error() { return rarefy_last_error(); }

  static testing::TinyCheckpoint* checkpoint_;
  static rarefy_model* model_;
  rarefy_engine* engine_ = nullptr;
  rarefy_session* session_ = nullptr;
};
testing::TinyCheckpoint* CapiTest::checkpoint_ = nullptr;
rarefy_model* CapiTest::model_ = nullptr;

TEST(Capi, VersionAndNames) {
  EXPECT_EQ(rarefy_version(), RAREFY_VERSION_MAJOR * 10000 + RAREFY_VERSION_MINOR * 100 + RAREFY_VERSION_PATCH);
  EXPECT_STREQ(rarefy_version_string(), "0.1.0");
  EXPECT_STREQ(rarefy_status_name(RAREFY_DATA_LOSS), "data loss");
  EXPECT_STREQ(rarefy_status_name(static_cast<rarefy_status>(12)), "unknown status");
}

TEST(Capi, ThreadCount) {
  EXPECT_EQ(rarefy_set_num_threads(-1), RAREFY_INVALID_ARGUMENT);
  ASSERT_EQ(rarefy_set_num_threads(2), RAREFY_OK);
  EXPECT_EQ(rarefy_num_threads(), 2);
  ASSERT_EQ(rarefy_set_num_threads(0), RAREFY_OK);
  EXPECT_GE(rarefy_num_threads(), 1);
}

TEST_F(CapiTest, InfoIsThatOfTheCheckpoint) {
  rarefy_model_info info{};
  info.struct_size = sizeof(info);
  ASSERT_EQ(rarefy_model_get_info(model_, &info), RAREFY_OK);
  EXPECT_EQ(info.vocab_size, kVocab);
  EXPECT_EQ(info.num_layers, 2);
  EXPECT_EQ(info.num_q_heads, 4);
  EXPECT_EQ(info.num_kv_heads, 1);
  EXPECT_EQ(info.head_dim, 64);
  EXPECT_EQ(info.max_ctx_size, 8192);
  EXPECT_GT(info.weight_bytes, 0);
}

TEST_F(CapiTest, TextToTokensAndBack) {
  const std::string text = "Grüße, 日本";
  int64_t count = 0;
  ASSERT_EQ(rarefy_tokenize(model_, text.c_str(), -1, RAREFY_NO_SPECIAL_TOKENS, nullptr, 0, &count), RAREFY_OK) << error();
  EXPECT_EQ(count, static_cast<int64_t>(text.size()));  // a token per byte
  std::vector<int32_t> ids(static_cast<size_t>(count), -7);
  EXPECT_EQ(rarefy_tokenize(model_, text.c_str(), -1, RAREFY_NO_SPECIAL_TOKENS, ids.data(), count - 1, &count),
            RAREFY_BUFFER_TOO_SMALL);
  EXPECT_EQ(ids[0], -7);
  ASSERT_EQ(rarefy_tokenize(model_, text.c_str(), -1, RAREFY_NO_SPECIAL_TOKENS, ids.data(), count, &count), RAREFY_OK);
  int64_t part = 0;
  ASSERT_EQ(rarefy_tokenize(model_, text.c_str(), 2, RAREFY_NO_SPECIAL_TOKENS, nullptr, 0, &part), RAREFY_OK);
  EXPECT_EQ(part, 2);

  int64_t bytes = 0;
  ASSERT_EQ(rarefy_detokenize(model_, ids.data(), count, 0, nullptr, 0, &bytes), RAREFY_OK) << error();
  ASSERT_EQ(bytes, static_cast<int64_t>(text.size()));
  std::string back(text.size() + 1, 'x');
  EXPECT_EQ(rarefy_detokenize(model_, ids.data(), count, 0, back.data(), bytes, &bytes), RAREFY_BUFFER_TOO_SMALL);
  ASSERT_EQ(rarefy_detokenize(model_, ids.data(), count, 0, back.data(), bytes + 1, &bytes), RAREFY_OK);
  EXPECT_STREQ(back.c_str(), text.c_str());

  EXPECT_EQ(rarefy_tokenize(model_, "\xff", -1, 0, nullptr, 0, &count), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_tokenize(model_, "a", -1, 8, nullptr, 0, &count), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_tokenize(model_, "a", -2, 0, nullptr, 0, &count), RAREFY_INVALID_ARGUMENT);
  const int32_t unknown = 1 << 20;
  EXPECT_NE(rarefy_detokenize(model_, &unknown, 1, 0, nullptr, 0, &bytes), RAREFY_OK);
}

TEST_F(CapiTest, NullAndWrongSizesAreErrors) {
  rarefy_model* model = nullptr;
  rarefy_engine* engine = nullptr;
  rarefy_session* session = nullptr;
  int64_t count = 0;
  int32_t length = 0;
  rarefy_stats stats{};
  stats.struct_size = sizeof(stats);
  rarefy_model_info info{};
  info.struct_size = sizeof(info);
  const int32_t token = 1;
  EXPECT_EQ(rarefy_model_load(nullptr, nullptr, &model), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_model_load("x", nullptr, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_model_get_info(nullptr, &info), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_model_get_info(model_, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_model_stop_tokens(nullptr, nullptr, 0, &count), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_model_stop_tokens(model_, nullptr, 0, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_model_stop_tokens(model_, nullptr, 3, &count), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_tokenize(nullptr, "a", -1, 0, nullptr, 0, &count), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_tokenize(model_, nullptr, -1, 0, nullptr, 0, &count), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_detokenize(nullptr, &token, 1, 0, nullptr, 0, &count), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_detokenize(model_, nullptr, 1, 0, nullptr, 0, &count), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_detokenize(model_, &token, -1, 0, nullptr, 0, &count), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_engine_create(nullptr, nullptr, &engine), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_engine_create(model_, nullptr, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_create(nullptr, &session), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_create(engine_, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_fork(nullptr, &session), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_fork(session_, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_length(nullptr, &length), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_length(session_, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_truncate(nullptr, 0), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_set_policy(nullptr, "50x"), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_set_policy(session_, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_policy(nullptr, nullptr, 0, &count), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_set_seed(nullptr, 1), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_set_audit(nullptr, 0.5), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_prefill(nullptr, &token, 1, nullptr, nullptr, nullptr, 0), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_prefill(session_, nullptr, 1, nullptr, nullptr, nullptr, 0), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_prefill(session_, &token, 0, nullptr, nullptr, nullptr, 0), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_prefill(session_, &token, -1, nullptr, nullptr, nullptr, 0), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_decode(nullptr, 1, nullptr, 0), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_get_stats(nullptr, &stats), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_get_stats(session_, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_stats_json(nullptr, nullptr, 0, &count), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_reset_stats(nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_NE(error().find("expected a session, got NULL"), std::string::npos) << error();
  rarefy_model_free(nullptr);
  rarefy_engine_free(nullptr);
  rarefy_session_free(nullptr);

  for (const size_t size : {size_t{0}, sizeof(stats) - 8, sizeof(stats) + 8}) {
    stats.struct_size = size;
    stats.prefill_tokens = -3;
    EXPECT_EQ(rarefy_session_get_stats(session_, &stats), RAREFY_INVALID_ARGUMENT);
    EXPECT_EQ(stats.prefill_tokens, -3);
    EXPECT_NE(error().find("struct_size"), std::string::npos) << error();
  }
  info.struct_size = 4;
  EXPECT_EQ(rarefy_model_get_info(model_, &info), RAREFY_INVALID_ARGUMENT);
  rarefy_model_options model_options{};
  EXPECT_EQ(rarefy_model_load("x", &model_options, &model), RAREFY_INVALID_ARGUMENT);
  model_options.struct_size = sizeof(model_options);
  model_options.compute = 9;
  EXPECT_EQ(rarefy_model_load("x", &model_options, &model), RAREFY_INVALID_ARGUMENT);
  rarefy_engine_options engine_options{};
  EXPECT_EQ(rarefy_engine_create(model_, &engine_options, &engine), RAREFY_INVALID_ARGUMENT);
  engine_options.struct_size = sizeof(engine_options);
  engine_options.kv_dtype = 17;
  EXPECT_EQ(rarefy_engine_create(model_, &engine_options, &engine), RAREFY_INVALID_ARGUMENT);
  engine_options.kv_dtype = RAREFY_KV_F16;
  engine_options.page_size = 24;
  EXPECT_EQ(rarefy_engine_create(model_, &engine_options, &engine), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(model, nullptr);
  EXPECT_EQ(engine, nullptr);
  EXPECT_EQ(session, nullptr);
}

TEST_F(CapiTest, MissingFilesAndBadPoliciesSayWhy) {
  rarefy_model* model = nullptr;
  EXPECT_EQ(rarefy_model_load("/nonexistent/folder", nullptr, &model), RAREFY_NOT_FOUND) << error();
  EXPECT_NE(error().find("/nonexistent/folder"), std::string::npos) << error();
  EXPECT_EQ(rarefy_session_set_policy(session_, "total=0.02 spend=greedy"), RAREFY_INVALID_ARGUMENT);
  EXPECT_NE(error().find("topk"), std::string::npos) << error();
  EXPECT_EQ(rarefy_session_set_audit(session_, 1.5), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_set_audit(session_, std::nan("")), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_session_decode(session_, kVocab, nullptr, 0), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(prefill(session_, 1025), RAREFY_RESOURCE_EXHAUSTED) << error();
  EXPECT_EQ(length(session_), 0);
}

TEST_F(CapiTest, ErrorsBelongToTheirThread) {
  EXPECT_EQ(rarefy_session_set_policy(session_, nullptr), RAREFY_INVALID_ARGUMENT);
  const std::string mine = error();
  std::string at_start = "?";
  std::thread([&] {
    at_start = rarefy_last_error();
    EXPECT_EQ(rarefy_set_num_threads(-5), RAREFY_INVALID_ARGUMENT);
  }).join();
  EXPECT_EQ(at_start, "");
  EXPECT_EQ(error(), mine);
}

TEST_F(CapiTest, ProgressReportsEveryChunkAndCancels) {
  std::vector<int64_t> seen;
  const auto record = [](int64_t done, int64_t total, void* user) -> int32_t {
    EXPECT_EQ(total, 250);
    static_cast<std::vector<int64_t>*>(user)->push_back(done);
    return 1;
  };
  const auto ids = tokens(250);
  std::vector<float> logits(kVocab, NAN);  // [vocab_size] f32
  ASSERT_EQ(rarefy_session_prefill(session_, ids.data(), 250, record, &seen, logits.data(), kVocab), RAREFY_OK) << error();
  EXPECT_EQ(seen, (std::vector<int64_t>{100, 200, 250}));
  EXPECT_TRUE(std::isfinite(logits[0]));
  EXPECT_EQ(rarefy_session_prefill(session_, ids.data(), 5, nullptr, nullptr, logits.data(), kVocab - 1),
            RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(length(session_), 250);
  const auto stop = [](int64_t, int64_t, void*) -> int32_t { return 0; };
  EXPECT_EQ(rarefy_session_prefill(session_, ids.data(), 250, stop, nullptr, nullptr, 0), RAREFY_CANCELLED);
  EXPECT_EQ(length(session_), 350);
}

TEST_F(CapiTest, ForkDecodesThroughAPolicyAndLeavesItsParent) {
  ASSERT_EQ(prefill(session_, 600), RAREFY_OK) << error();
  rarefy_session* dense = nullptr;
  rarefy_session* sparse = nullptr;
  ASSERT_EQ(rarefy_session_fork(session_, &dense), RAREFY_OK);
  ASSERT_EQ(rarefy_session_fork(session_, &sparse), RAREFY_OK);
  // All tokens but one: nearly the dense answer.
  ASSERT_EQ(rarefy_session_set_policy(sparse, "total=600 min=1 index=oracle spend=topk"), RAREFY_OK) << error();
  ASSERT_EQ(rarefy_session_set_audit(sparse, 1.0), RAREFY_OK);
  ASSERT_EQ(rarefy_session_set_seed(sparse, 5), RAREFY_OK);
  std::vector<float> a(kVocab), b(kVocab);  // [vocab_size] f32
  ASSERT_EQ(rarefy_session_decode(dense, 42, a.data(), kVocab), RAREFY_OK) << error();
  ASSERT_EQ(rarefy_session_decode(sparse, 42, b.data(), kVocab), RAREFY_OK) << error();
  for (int32_t i = 0; i < kVocab; ++i) ASSERT_NEAR(a[i], b[i], 0.02) << i;
  EXPECT_EQ(length(session_), 600);
  EXPECT_EQ(length(sparse), 601);

  rarefy_stats stats{};
  stats.struct_size = sizeof(stats);
  ASSERT_EQ(rarefy_session_get_stats(sparse, &stats), RAREFY_OK);
  EXPECT_EQ(stats.decode_tokens, 1);
  EXPECT_EQ(stats.prefill_tokens, 0);
  EXPECT_EQ(stats.sparse_layer_steps, 2);
  EXPECT_EQ(stats.dense_layer_steps, 0);
  EXPECT_NEAR(stats.density, 600.0 / 601.0, 1e-12);
  EXPECT_EQ(stats.audited_count, 2 * 4);
  EXPECT_GT(stats.audited_mass_mean, 0.9);
  EXPECT_LE(stats.audited_error_p50, stats.audited_error_max);
  EXPECT_EQ(stats.dense_bytes, 2 * 601 * 64 * 2 * 2);

  int64_t bytes = 0;
  ASSERT_EQ(rarefy_session_stats_json(sparse, nullptr, 0, &bytes), RAREFY_OK);
  std::string json(static_cast<size_t>(bytes) + 1, '\0');
  ASSERT_EQ(rarefy_session_stats_json(sparse, json.data(), bytes + 1, &bytes), RAREFY_OK);
  EXPECT_NE(json.find("\"bytes_ratio\""), std::string::npos);
  ASSERT_EQ(rarefy_session_policy(sparse, nullptr, 0, &bytes), RAREFY_OK);
  std::string policy(static_cast<size_t>(bytes) + 1, '\0');
  ASSERT_EQ(rarefy_session_policy(sparse, policy.data(), bytes + 1, &bytes), RAREFY_OK);
  EXPECT_EQ(policy.find("total=600 "), 0u) << policy;

  ASSERT_EQ(rarefy_session_reset_stats(sparse), RAREFY_OK);
  ASSERT_EQ(rarefy_session_get_stats(sparse, &stats), RAREFY_OK);
  EXPECT_EQ(stats.decode_tokens, 0);
  EXPECT_EQ(rarefy_session_truncate(sparse, 700), RAREFY_INVALID_ARGUMENT);
  ASSERT_EQ(rarefy_session_truncate(sparse, 100), RAREFY_OK);
  EXPECT_EQ(length(sparse), 100);

  rarefy_session_free(dense);
  rarefy_session_free(sparse);
}

TEST_F(CapiTest, HandlesMayBeFreedInAnyOrder) {
  rarefy_model* model = nullptr;
  rarefy_engine* engine = nullptr;
  rarefy_session* session = nullptr;
  ASSERT_EQ(rarefy_model_load(checkpoint_->folder().c_str(), nullptr, &model), RAREFY_OK);
  rarefy_engine_options options{};
  options.struct_size = sizeof(options);
  options.ctx_size = 64;
  ASSERT_EQ(rarefy_engine_create(model, &options, &engine), RAREFY_OK) << error();
  ASSERT_EQ(rarefy_session_create(engine, &session), RAREFY_OK);
  rarefy_model_free(model);
  rarefy_engine_free(engine);
  EXPECT_EQ(prefill(session, 20), RAREFY_OK) << error();
  rarefy_session_free(session);
}

TEST_F(CapiTest, SessionsOfOneEngineRunInSeveralThreads) {
  ASSERT_EQ(prefill(session_, 530), RAREFY_OK);
  std::vector<std::vector<float>> logits(3, std::vector<float>(kVocab));
  std::vector<rarefy_session*> forks(3);
  for (auto& fork : forks) ASSERT_EQ(rarefy_session_fork(session_, &fork), RAREFY_OK);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < forks.size(); ++i) {
    threads.emplace_back([&, i] {
      EXPECT_EQ(rarefy_session_set_policy(forks[i], "10x index=quest16"), RAREFY_OK) << rarefy_last_error();
      for (int32_t token = 0; token < 5; ++token) {
        EXPECT_EQ(rarefy_session_decode(forks[i], token, logits[i].data(), kVocab), RAREFY_OK) << rarefy_last_error();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(logits[0], logits[1]);
  EXPECT_EQ(logits[0], logits[2]);
  for (auto* fork : forks) rarefy_session_free(fork);
}

}  // namespace
}  // namespace rarefy
