// Selectors by name: what exists, what is refused and how, and a selector from outside.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "rarefy/select/registry.h"

namespace rarefy {
namespace {

SelectorShape shape_of(int32_t head_dim) { return {2, 2, 4, head_dim, DType::bf16}; }

// The simplest selector from outside: the sum of each key's components, stored as f32.
class SumSelector final : public Selector {
 public:
  explicit SumSelector(const SelectorShape& shape) : shape_(shape) {}
  std::string name() const override { return "sum"; }
  int32_t block_tokens() const override { return 1; }
  int64_t block_bytes() const override { return sizeof(float); }
  void encode(HeadId, const BlockKeys& block, std::byte* entry) const override {
    float sum = 0.0f;
    for (int32_t dim = 0; dim < shape_.head_dim; ++dim) sum += block.keys[dim];
    *reinterpret_cast<float*>(entry) = sum;
  }
  size_t query_state_bytes() const override { return sizeof(float); }
  void prepare(HeadId, const float* q, std::byte* state) const override { *reinterpret_cast<float*>(state) = q[0]; }
  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t) const override {
    for (int32_t block = 0; block < blocks.num_blocks; ++block) {
      scores[block] = *reinterpret_cast<const float*>(state) * *reinterpret_cast<const float*>(blocks.entries[block]);
    }
  }

 private:
  SelectorShape shape_;
};

TEST(SelectorRegistry, MakesEveryBuiltInSelectorUnderItsOwnName) {
  for (const std::string name : {"oracle", "quest16", "quest16:int8", "sign", "q2"}) {
    const auto selector = make_selector(name, shape_of(128));
    ASSERT_TRUE(selector) << selector.status().to_string();
    EXPECT_EQ((*selector)->name(), name);
  }
  EXPECT_EQ((*make_selector("quest16:bf16", shape_of(128)))->name(), "quest16");
}

TEST(SelectorRegistry, BytesPerTokenAreThoseOfTheStoredLayout) {
  EXPECT_EQ((*make_selector("sign", shape_of(128)))->bytes_per_token(), 128 / 8 + 2);
  EXPECT_EQ((*make_selector("sign", shape_of(64)))->bytes_per_token(), 64 / 8 + 2);
  EXPECT_EQ((*make_selector("q2", shape_of(128)))->bytes_per_token(), 128 / 4 + 2);
  EXPECT_EQ((*make_selector("q2", shape_of(64)))->bytes_per_token(), 64 / 4 + 2);
  EXPECT_EQ((*make_selector("quest16", shape_of(128)))->bytes_per_token(), 32);
  EXPECT_EQ((*make_selector("quest16:int8", shape_of(128)))->bytes_per_token(), 16.5);
  EXPECT_EQ((*make_selector("oracle", shape_of(128)))->bytes_per_token(), 256);
}

TEST(SelectorRegistry, UnknownNamesAndOptionsSayWhatExists) {
  const auto unknown = make_selector("signs", shape_of(64));
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.status().code(), StatusCode::not_found);
  for (const char* word : {"signs", "oracle", "quest16", "sign", "q2"}) {
    EXPECT_NE(unknown.status().message().find(word), std::string::npos) << unknown.status().message();
  }
  const auto option = make_selector("quest16:int4", shape_of(64));
  ASSERT_FALSE(option);
  EXPECT_EQ(option.status().code(), StatusCode::invalid_argument);
  EXPECT_NE(option.status().message().find("int8"), std::string::npos);
  for (const char* text : {"sign:4", "q2:x", "oracle:1"}) {
    EXPECT_EQ(make_selector(text, shape_of(64)).status().code(), StatusCode::invalid_argument) << text;
  }
}

TEST(SelectorRegistry, RefusesShapesThatNoSelectorTakes) {
  SelectorShape shape = shape_of(64);
  shape.group = kMaxGroup + 1;
  EXPECT_EQ(make_selector("sign", shape).status().code(), StatusCode::invalid_argument);
  shape = shape_of(64);
  shape.kv_dtype = DType::i8;
  EXPECT_EQ(make_selector("sign", shape).status().code(), StatusCode::unsupported);
  EXPECT_EQ(make_selector("sign", shape_of(63)).status().code(), StatusCode::unsupported);
  EXPECT_EQ(make_selector("quest16", shape_of(2048)).status().code(), StatusCode::unsupported);
}

TEST(SelectorRegistry, TakesSelectorsFromOutsideOnce) {
  const auto factory = [](const SelectorShape& shape, std::string_view) -> Expected<std::shared_ptr<const Selector>> {
    return std::make_shared<const SumSelector>(shape);
  };
  ASSERT_TRUE(register_selector({"sum", "", "sum of the components"}, factory).ok());
  EXPECT_TRUE(make_selector("sum", shape_of(64)));
  EXPECT_EQ(register_selector({"sum", "", "again"}, factory).code(), StatusCode::invalid_argument);
  EXPECT_EQ(register_selector({"a:b", "", "bad name"}, factory).code(), StatusCode::invalid_argument);
  EXPECT_EQ(register_selector({"", "", "no name"}, factory).code(), StatusCode::invalid_argument);
  EXPECT_EQ(register_selector({"nothing", "", "no factory"}, nullptr).code(), StatusCode::invalid_argument);
  const auto infos = list_selectors();
  EXPECT_TRUE(std::any_of(infos.begin(), infos.end(), [](const SelectorInfo& info) { return info.name == "sum"; }));
}

TEST(SelectorRegistry, IsSafeToUseFromSeveralThreads) {
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&failures, thread] {
      for (int i = 0; i < 50; ++i) {
        const auto factory = [](const SelectorShape& shape, std::string_view) -> Expected<std::shared_ptr<const Selector>> {
          return std::make_shared<const SumSelector>(shape);
        };
        const std::string name = "sum" + std::to_string(thread) + "_" + std::to_string(i);
        if (!register_selector({name, "", "one of many"}, factory).ok()) ++failures;
        if (!make_selector(name, shape_of(64))) ++failures;
        if (list_selectors().size() < 5) ++failures;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
}

}  // namespace
}  // namespace rarefy
