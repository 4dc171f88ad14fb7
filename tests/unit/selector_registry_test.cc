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
  for (const std::string name : {"oracle",
                                 "quest16",
                                 "quest16:int8",
                                 "quest32:int4:bound",
                                 "sign",
                                 "sign:bound",
                                 "q2",
                                 "q2:bound",
                                 "pq16x4",
                                 "pq8x8",
                                 "pq4x8",
                                 "pq2x6",
                                 "ds16",
                                 "ds16:2bit",
                                 "ds32",
                                 "quest32:int4+sign",
                                 "quest16:int8+q2@0.2",
                                 "hard:quest16+pq16x4@0.1",
                                 "magicpig",
                                 "magicpig:10x150",
                                 "socket",
                                 "socket:8x20"}) {
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
  EXPECT_EQ((*make_selector("quest32:int4", shape_of(128)))->bytes_per_token(), 4 + 6.0 / 32);
  EXPECT_EQ((*make_selector("quest16:int4", shape_of(128)))->bytes_per_token(), 8 + 6.0 / 16);
  EXPECT_EQ((*make_selector("quest16:bound", shape_of(128)))->bytes_per_token(), 32 + 2.0 / 16);
  EXPECT_EQ((*make_selector("q2:bound", shape_of(128)))->bytes_per_token(), 128 / 4 + 2 + 2 + 2.0 / 16);
  EXPECT_EQ((*make_selector("pq16x4", shape_of(128)))->bytes_per_token(), 8);
  EXPECT_EQ((*make_selector("pq8x8", shape_of(128)))->bytes_per_token(), 8);
  EXPECT_EQ((*make_selector("pq4x8", shape_of(128)))->bytes_per_token(), 4);
  EXPECT_EQ((*make_selector("pq2x6", shape_of(128)))->bytes_per_token(), 1.5);
  EXPECT_EQ((*make_selector("magicpig", shape_of(128)))->bytes_per_token(), 75);
  EXPECT_EQ((*make_selector("magicpig:10x75", shape_of(128)))->bytes_per_token(), 150);
  EXPECT_EQ((*make_selector("socket", shape_of(128)))->bytes_per_token(), 112);
  EXPECT_EQ((*make_selector("ds16", shape_of(128)))->bytes_per_token(), 8);
  EXPECT_EQ((*make_selector("ds16:2bit", shape_of(128)))->bytes_per_token(), 4);
  EXPECT_EQ((*make_selector("quest32:int4+sign@0.5", shape_of(128)))->bytes_per_token(), 4 + 6.0 / 32 + 0.5 * 18);
}

TEST(SelectorRegistry, UnknownNamesAndOptionsSayWhatExists) {
  const auto unknown = make_selector("signs", shape_of(64));
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.status().code(), StatusCode::not_found);
  for (const char* word : {"signs", "oracle", "quest16", "sign", "q2"}) {
    EXPECT_NE(unknown.status().message().find(word), std::string::npos) << unknown.status().message();
  }
  const auto option = make_selector("quest16:int2", shape_of(64));
  ASSERT_FALSE(option);
  EXPECT_EQ(option.status().code(), StatusCode::invalid_argument);
  EXPECT_NE(option.status().message().find("int8"), std::string::npos);
  for (const char* text : {"sign:4",
                           "q2:x",
                           "oracle:1",
                           "quest32:bf16:x",
                           "pq16x3",
                           "pq16x9",
                           "pq0x4",
                           "pq16",
                           "pq16x4x",
                           "pq16x4:1",
                           "magicpig:8",
                           "magicpig:0x8",
                           "magicpig:17x8",
                           "magicpig:8x256",
                           "magicpig:8x75x",
                           "socket:x",
                           "ds16:3bit",
                           "ds16:channels=",
                           "quest32+",
                           "+sign",
                           "hard:quest32",
                           "hard",
                           "quest32+sign@",
                           "quest32+sign@0",
                           "quest32+sign@1.5",
                           "quest32+sign@x",
                           "sign+q2",
                           "quest16+sign+q2",
                           "hard:hard:quest16+sign"}) {
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
  EXPECT_EQ(make_selector("pq16x4", shape_of(72)).status().code(), StatusCode::unsupported);
  EXPECT_EQ(make_selector("ds16", shape_of(12)).status().code(), StatusCode::unsupported);
}

TEST(SelectorRegistry, ChecksTheNamesOfBothParts) {
  for (const char* text : {"sign", "quest32:int4+sign@0.1", "hard:quest16+pq4x8"})
    EXPECT_TRUE(check_selector_names(text).ok()) << text;
  for (const char* text : {"signs", "quest32:int4+signs", "quests+sign", "hard:quest16"}) {
    EXPECT_EQ(check_selector_names(text).code(), StatusCode::not_found) << text;
  }
  EXPECT_FALSE((*make_selector("quest16+sign", shape_of(64)))->is_hard_filter());
  EXPECT_TRUE((*make_selector("hard:quest16+sign", shape_of(64)))->is_hard_filter());
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
