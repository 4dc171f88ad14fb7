// Selectors from shared objects: the examples against double-precision references, through cache and selection like any other;
// and plugins that do what they must not.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "core/aligned_buffer.h"
#include "rarefy/rarefy.h"
#include "rarefy/select/registry.h"
#include "rarefy/select/selection.h"

namespace rarefy {
namespace {

constexpr int32_t kHeadDim = 64, kGroup = 4, kNumTokens = 16 * 20 + 5;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

SelectorShape test_shape() { return {2, 2, kGroup, kHeadDim, DType::bf16}; }

void load_examples() {
  for (const char* file : {RAREFY_PLUGIN_PAGE_MEAN, RAREFY_PLUGIN_INT8_CODES, RAREFY_BAD_PLUGIN_MISBEHAVING}) {
    const Status status = load_plugin(file);
    ASSERT_TRUE(status.ok()) << status.to_string();
  }
}

std::vector<float> random_rows(int32_t num_rows, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> rows;
  for (int64_t i = 0; i < int64_t{num_rows} * kHeadDim; ++i) rows.push_back(to_float(to_bfloat16(normal(random))));
  return rows;
}

// Keys in blocks, encoded at once or one token at a time, where only what encode() says it reads is there.
class Encoded {
 public:
  Encoded(const Selector& selector, const std::vector<float>& keys, bool one_by_one)  // keys [kNumTokens, kHeadDim] f32
      : selector_(&selector), bytes_(selector.block_bytes()), tokens_(selector.block_tokens()) {
    num_blocks_ = (kNumTokens + tokens_ - 1) / tokens_;
    index_.reserve(static_cast<size_t>(num_blocks_ * bytes_));
    std::memset(index_.data(), 0x5a, index_.capacity());
    for (int32_t block = 0; block < num_blocks_; ++block) {
      const float* first = keys.data() + int64_t{block} * tokens_ * kHeadDim;  // [count, kHeadDim] f32
      const int32_t count = std::min(tokens_, kNumTokens - block * tokens_);
      for (int32_t end = one_by_one ? 1 : count, done = 0; done < count; done = end++) {
        std::vector<float> readable(static_cast<size_t>(tokens_) * kHeadDim, kNan);
        const int32_t from = selector.first_key_read(done, end);
        std::copy(first + int64_t{from} * kHeadDim, first + int64_t{end} * kHeadDim,
                  readable.begin() + int64_t{from} * kHeadDim);
        selector.encode({1, 1}, {readable.data(), end, done}, index_.data() + block * bytes_);
      }
    }
  }
  bool operator==(const Encoded& other) const {
    return std::memcmp(index_.data(), other.index_.data(), static_cast<size_t>(num_blocks_ * bytes_)) == 0;
  }
  // [kGroup][kNumTokens]; checks what lies behind the scores.
  std::vector<std::vector<float>> scores(const std::vector<float>& q) const {  // q [kGroup, kHeadDim] f32
    AlignedBuffer state;
    selector_->prepare({1, 1}, q.data(), state.reserve(selector_->query_state_bytes()));
    std::vector<const std::byte*> entries;
    for (int32_t block = 0; block < num_blocks_; ++block) entries.push_back(index_.data() + block * bytes_);
    const int64_t used = int64_t{num_blocks_} * tokens_, stride = used + 5;
    std::vector<float> out(static_cast<size_t>(stride * kGroup), -77.0f);
    ScoreBlocks blocks;
    blocks.head = {1, 1};
    blocks.num_blocks = num_blocks_;
    blocks.entries = entries.data();
    selector_->score(state.data(), blocks, out.data(), stride);
    std::vector<std::vector<float>> result;
    for (int32_t query = 0; query < kGroup; ++query) {
      for (int64_t i = used; i < stride; ++i) EXPECT_EQ(out[query * stride + i], -77.0f);
      result.emplace_back(out.begin() + query * stride, out.begin() + query * stride + kNumTokens);
    }
    return result;
  }

 private:
  const Selector* selector_;
  int64_t bytes_;
  int32_t tokens_, num_blocks_ = 0;
  AlignedBuffer index_;
};

double dot(const float* a, const float* b) {  // a, b [kHeadDim] f32
  double sum = 0.0;
  for (int32_t dim = 0; dim < kHeadDim; ++dim) sum += static_cast<double>(a[dim]) * b[dim];
  return sum;
}

double absolute_dot(const float* a, const float* b) {  // a, b [kHeadDim] f32
  double sum = 0.0;
  for (int32_t dim = 0; dim < kHeadDim; ++dim) sum += std::abs(static_cast<double>(a[dim]) * b[dim]);
  return sum;
}

TEST(ExamplePlugins, PageMeanScoresAreThoseOfTheMean) {
  load_examples();
  const auto selector = *make_selector("page_mean", test_shape());
  EXPECT_EQ(selector->name(), "page_mean");
  EXPECT_EQ(selector->bytes_per_token(), 2.0 * kHeadDim / 16);
  const auto keys = random_rows(kNumTokens, 1), q = random_rows(kGroup, 2);
  const Encoded encoded(*selector, keys, false);
  EXPECT_TRUE(encoded == Encoded(*selector, keys, true));
  const auto scores = encoded.scores(q);
  for (int32_t token = 0; token < kNumTokens; ++token) {
    const int32_t first = token / 16 * 16, count = std::min(16, kNumTokens - first);
    std::vector<float> mean(kHeadDim);
    for (int32_t dim = 0; dim < kHeadDim; ++dim) {
      double sum = 0.0;
      for (int32_t i = 0; i < count; ++i) sum += keys[static_cast<size_t>(first + i) * kHeadDim + dim];
      mean[dim] = static_cast<float>(sum / count);
    }
    for (int32_t query = 0; query < kGroup; ++query) {
      const float* row = q.data() + int64_t{query} * kHeadDim;
      // A bf16 that is cut off is at most 2^-7 of its value too small; the sums of 16 and 64 terms in f32 add far less.
      const double bound = 0x1p-7 * absolute_dot(row, mean.data()) + 1e-4;
      EXPECT_NEAR(scores[query][token], dot(row, mean.data()), bound) << "token " << token;
    }
  }
}

TEST(ExamplePlugins, Int8CodesScoresAreWithinHalfAStepPerDimension) {
  load_examples();
  const auto selector = *make_selector("int8_codes", test_shape());
  const auto keys = random_rows(kNumTokens, 3), q = random_rows(kGroup, 4);
  const Encoded encoded(*selector, keys, false);
  EXPECT_TRUE(encoded == Encoded(*selector, keys, true));
  const auto scores = encoded.scores(q);
  const std::vector<float> ones(kHeadDim, 1.0f);
  for (int32_t token = 0; token < kNumTokens; ++token) {
    const float* key = keys.data() + int64_t{token} * kHeadDim;
    float largest = 0.0f;
    for (int32_t dim = 0; dim < kHeadDim; ++dim) largest = std::max(largest, std::abs(key[dim]));
    for (int32_t query = 0; query < kGroup; ++query) {
      const float* row = q.data() + int64_t{query} * kHeadDim;
      const double bound = 0.5 * largest / 127 * absolute_dot(row, ones.data()) * 1.0001 + 1e-4;
      EXPECT_NEAR(scores[query][token], dot(row, key), bound) << "token " << token;
    }
  }
}

TEST(ExamplePlugins, RefuseOptionsWithTheirOwnWords) {
  load_examples();
  for (const char* text : {"page_mean:x", "int8_codes:x"}) {
    const auto refused = make_selector(text, test_shape());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.status().code(), StatusCode::invalid_argument);
    EXPECT_NE(refused.status().message().find("takes no options, got 'x'"), std::string::npos)
        << refused.status().message();
  }
}

// A cache of one sequence and what a step selects from it.
struct Outcome {
  explicit Outcome(const std::string& index, Spend spend) {
    KvCacheConfig config;
    config.num_layers = 2;
    config.num_kv_heads = 2;
    config.head_dim = kHeadDim;
    config.dtype = DType::bf16;
    config.page_size = 64;
    config.max_tokens = 4096;
    const auto cache = *KvCache::create(config);
    Policy policy;
    policy.dense = false;
    policy.total = {false, 100};
    policy.index = index;
    policy.spend = spend;
    auto selection = *Selection::make(policy, *make_selector(index, test_shape()), test_shape(), *cache);
    KvSequence sequence = cache->new_sequence();
    const auto rows = random_rows(2 * 3000, 9);
    EXPECT_TRUE(sequence.begin_append(3000).ok());
    for (int32_t layer = 0; layer < 2; ++layer) EXPECT_TRUE(sequence.write(layer, rows.data(), rows.data()).ok());
    sequence.commit();
    update = selection.update_index(sequence, 0);
    set.resize(1, 2, 100);
    const auto q = random_rows(2 * kGroup, 10);
    SelectionStep step;
    step.position = 2999;
    step.q = q.data();
    SelectionCost cost;
    select = selection.select(sequence, step, set, cost);
    const int32_t kv_len = 3000;
    valid = validate(set.view(), 1, &kv_len);
  }
  IndexSet set;
  Status update, select, valid;
};

TEST(ExamplePlugins, SelectLikeAnyOther) {
  load_examples();
  for (const char* index : {"page_mean", "int8_codes", "quest16+int8_codes"}) {
    const Outcome run(index, Spend::half);
    EXPECT_TRUE(run.update.ok() && run.select.ok() && run.valid.ok()) << run.select.to_string() << run.valid.to_string();
  }
}

TEST(BadPlugins, ScoresThatAreNoNumbersStillGiveValidSets) {
  load_examples();
  for (const Spend spend : {Spend::priority, Spend::top_k, Spend::half, Spend::uniform}) {
    Outcome run("misbehaving", spend);
    EXPECT_TRUE(run.select.ok()) << run.select.to_string();
    EXPECT_TRUE(run.valid.ok()) << to_string(spend) << ": " << run.valid.to_string();
    EXPECT_EQ(run.set.count(0, 0), 100);
  }
}

TEST(BadPlugins, WhatTheyThrowFailsTheStepWithTheirWords) {
  load_examples();
  const auto message = [](const char* index) { return Outcome(index, Spend::half).select.to_string(); };
  EXPECT_NE(message("misbehaving:score").find("'misbehaving:score': score failed with status 8: no scores today"),
            std::string::npos)
      << message("misbehaving:score");
  EXPECT_NE(message("misbehaving:prepare").find("an unknown exception"), std::string::npos)
      << message("misbehaving:prepare");
  const Outcome first_key("misbehaving:first_key", Spend::half);
  EXPECT_NE(first_key.update.message().find("first_key_read: expected 0 to 0, got 1"), std::string::npos)
      << first_key.update.to_string();
  EXPECT_FALSE(first_key.select.ok()) << "nothing was encoded";
  EXPECT_NE(message("quest16+misbehaving:score").find("no scores today"), std::string::npos)
      << message("quest16+misbehaving:score");
  EXPECT_NE(Outcome("misbehaving:encode", Spend::half).update.message().find("no encoding today"), std::string::npos);
}

TEST(BadPlugins, SizesThatCannotBeAndFactoriesThatFailAreRefused) {
  load_examples();
  const struct {
    const char* text;
    StatusCode code;
    const char* part;
  } cases[] = {
      {"misbehaving:block_0", StatusCode::unsupported, "got 0"},
      {"misbehaving:block_24", StatusCode::unsupported, "got 24"},
      {"misbehaving:bytes", StatusCode::unsupported, "got -1"},
      {"misbehaving:factory", StatusCode::internal, "no selector today"},
      {"misbehaving:refused", StatusCode::unsupported, "refused as asked"},
      {"misbehaving:null", StatusCode::internal, "returned nothing"},
  };
  for (const auto& one : cases) {
    const auto refused = make_selector(one.text, test_shape());
    ASSERT_FALSE(refused) << one.text;
    EXPECT_EQ(refused.status().code(), one.code) << refused.status().to_string();
    EXPECT_NE(refused.status().message().find(one.part), std::string::npos) << refused.status().message();
  }
}

TEST(BadPlugins, FilesThatAreNoPluginsSayWhy) {
  const struct {
    const char* file;
    const char* part;
  } cases[] = {
      {"no/such/plugin.so", "found no such file"},
      {RAREFY_SOURCE_DIR "/README.md", "expected a shared object"},
      {RAREFY_SOURCE_DIR, "found no such file"},
      {RAREFY_BAD_PLUGIN_NO_ENTRY, "rarefy_plugin_init"},
      {RAREFY_BAD_PLUGIN_THROWS, "not today"},
      {RAREFY_BAD_PLUGIN_OTHER_ABI, "expected a rarefy_selector_type of interface 1"},
      {RAREFY_BAD_PLUGIN_DUPLICATE, "'oracle' is registered already"},
      {RAREFY_BAD_PLUGIN_GIVES_UP, "gave up with status 3"},
  };
  for (const auto& one : cases) {
    const Status status = load_plugin(one.file);
    EXPECT_FALSE(status.ok()) << one.file;
    EXPECT_NE(status.message().find(one.part), std::string::npos) << status.message();
    EXPECT_TRUE(status.message().starts_with(std::string("plugin ") + one.file)) << status.message();
  }
}

TEST(Plugins, LoadingTwiceDoesNothing) {
  load_examples();
  load_examples();
}

// Callbacks of a program itself, without a shared object.
struct Probe {
  int destroyed = 0;
};
Probe probe;

rarefy_status create_nothing(void*, const rarefy_selector_shape*, const char* options, rarefy_selector* selector, char*,
                             size_t) {
  selector->user = &probe;
  selector->block_tokens = 16;
  selector->block_bytes = 4;
  selector->query_state_bytes = 4;
  selector->destroy = [](void* user) { ++static_cast<Probe*>(user)->destroyed; };
  if (std::string_view(options) == "size") selector->struct_size = 8;
  return RAREFY_OK;
}

TEST(ForeignSelectors, MissingCallbacksAndWrongSizesAreRefusedAndDestroyed) {
  rarefy_selector_type type{};
  EXPECT_EQ(register_selector(type).code(), StatusCode::unsupported);
  type.struct_size = sizeof(type);
  type.abi = RAREFY_PLUGIN_ABI;
  EXPECT_EQ(register_selector(type).code(), StatusCode::invalid_argument);
  type.name = "no callbacks";
  type.create = create_nothing;
  EXPECT_EQ(register_selector(type).code(), StatusCode::invalid_argument) << "spaces in the name";
  type.name = "no_callbacks";
  ASSERT_TRUE(register_selector(type).ok());
  EXPECT_EQ(register_selector(type).code(), StatusCode::invalid_argument) << "registered twice";
  EXPECT_NE(make_selector("no_callbacks", test_shape()).status().message().find("encode, prepare and score"),
            std::string::npos);
  EXPECT_EQ(probe.destroyed, 1);
  EXPECT_NE(make_selector("no_callbacks:size", test_shape()).status().message().find("struct_size"), std::string::npos);
  EXPECT_EQ(probe.destroyed, 2);
}

}  // namespace
}  // namespace rarefy
