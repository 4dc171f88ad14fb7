#include "rarefy/select/policy.h"

#include <gtest/gtest.h>

#include <random>

#include "rarefy/select/explain.h"
#include "rarefy/select/registry.h"

namespace rarefy {
namespace {

Policy parse(std::string_view text) {
  auto policy = Policy::parse(text);
  EXPECT_TRUE(policy) << text << ": " << policy.status().to_string();
  return policy ? *policy : Policy{};
}

std::string refusal(std::string_view text) {
  auto policy = Policy::parse(text);
  EXPECT_FALSE(policy) << text;
  return policy.status().message();
}

TEST(Policy, ShorthandIsTheDefaultRecipe) {
  const Policy policy = parse("50x");
  EXPECT_FALSE(policy.dense);
  EXPECT_DOUBLE_EQ(policy.total.value, 0.02);
  EXPECT_EQ(policy.spend, Spend::priority);
  EXPECT_EQ(policy, parse(policy.to_string()));
  EXPECT_EQ(parse("50x index=q2").index, "q2");
  EXPECT_DOUBLE_EQ(parse("7.5x").total.value, 1.0 / 7.5);
  EXPECT_EQ(parse("50x"), parse("total=2%"));
  EXPECT_TRUE(parse("dense").dense);
  EXPECT_TRUE(parse("  dense ").dense);
}

TEST(Policy, ReadsEveryKey) {
  const Policy policy =
      parse("total=400 sink=8 local=64 index=quest16:int8 spend=half floor=0.1 min=1024 dense_layers=0,2-3 total@5-6=0.05");
  EXPECT_FALSE(policy.total.is_fraction);
  EXPECT_EQ(policy.total.tokens(100000), 400);
  EXPECT_EQ(policy.sink, 8);
  EXPECT_EQ(policy.local, 64);
  EXPECT_EQ(policy.index, "quest16:int8");
  EXPECT_EQ(policy.spend, Spend::half);
  EXPECT_EQ(policy.min_kv_len, 1024);
  EXPECT_TRUE(policy.layer_is_dense(0, 10000));
  EXPECT_FALSE(policy.layer_is_dense(1, 10000));
  EXPECT_TRUE(policy.layer_is_dense(3, 10000));
  EXPECT_EQ(policy.total_tokens(5, 10000), 500);
  EXPECT_EQ(policy.total_tokens(4, 10000), 400);
  EXPECT_TRUE(policy.layer_is_dense(1, 1023));
  EXPECT_TRUE(parse("total=400 min=0").layer_is_dense(1, 400));
}

TEST(Policy, DenseLayersWinWhateverTheOrder) {
  for (const char* text : {"50x dense_layers=1 total@0-3=0.5", "50x total@0-3=0.5 dense_layers=1"}) {
    const Policy policy = parse(text);
    EXPECT_TRUE(policy.layer_is_dense(1, 10000)) << text;
    EXPECT_EQ(policy.total_tokens(2, 10000), 5000) << text;
    EXPECT_EQ(policy, parse(policy.to_string())) << policy.to_string();
  }
}

TEST(Policy, ResolvedTextParsesBack) {
  std::mt19937 random(3);
  const auto pick = [&](int32_t n) { return static_cast<int32_t>(random() % static_cast<uint32_t>(n)); };
  for (int round = 0; round < 2000; ++round) {
    Policy policy;
    policy.dense = false;
    const auto budget = [&] {
      return pick(2) == 0 ? Budget{false, 1.0 + pick(5000)} : Budget{true, (1.0 + pick(1000000)) / 1000000.0};
    };
    policy.total = budget();
    policy.sink = pick(200);
    policy.local = pick(200);
    policy.index = pick(2) == 0 ? "sign" : "quest16:int8";
    policy.spend = static_cast<Spend>(pick(4));
    policy.floor = pick(3) == 0 ? pick(1000) / 1000.0 : 0.0;
    policy.min_kv_len = pick(2000);
    const int32_t num_dense = pick(3);
    for (int32_t i = 0; i < num_dense; ++i) policy.overrides.push_back({i * 10, i * 10 + pick(3), true, {}});
    const int32_t num_totals = pick(3);
    for (int32_t i = 0; i < num_totals; ++i)
      policy.overrides.push_back({i * 10 + 5, i * 10 + 5 + pick(3), false, budget()});
    EXPECT_EQ(parse(policy.to_string()), policy) << policy.to_string();
  }
}

TEST(Policy, PromisesAnErrorUpToACap) {
  const Policy policy = parse("total=0.02 index=q2 spend=priority eps=0.1 delta=0.1 max=0.1");
  EXPECT_DOUBLE_EQ(policy.eps, 0.1);
  EXPECT_DOUBLE_EQ(policy.delta, 0.1);
  EXPECT_EQ(policy.max_tokens(0, 10000), 1000);
  EXPECT_EQ(policy.total_tokens(0, 10000), 200);
  EXPECT_EQ(parse("50x").max_tokens(0, 10000), 200) << "nothing is enlarged without eps";
  EXPECT_EQ(parse("total=400 eps=0.1 max=0.02").max_tokens(0, 10000), 400) << "the cap is never below the total";
  for (const char* text :
       {"total=0.02 spend=priority eps=0.1 delta=0.1 max=4000", "50x spend=topk eps=0.2 certify=bounded",
        "50x spend=topp p=0.75", "50x spend=vattention eps=0.1", "50x spend=gumbel eps=0.1", "50x spend=systematic"}) {
    EXPECT_EQ(parse(text), parse(parse(text).to_string())) << parse(text).to_string();
  }
}

TEST(Policy, RefusesNonsenseAndSaysWhatItExpected) {
  EXPECT_NE(refusal("spend=greedy total=1%").find("priority, topk, half, uniform, topp"), std::string::npos);
  EXPECT_NE(refusal("sparsity=50").find("unknown key 'sparsity'"), std::string::npos);
  EXPECT_NE(refusal("50x eps=1").find("relative error"), std::string::npos);
  EXPECT_NE(refusal("50x eps=0.1 delta=0").find("share of violations"), std::string::npos);
  EXPECT_NE(refusal("50x delta=0.1").find("add eps="), std::string::npos);
  EXPECT_NE(refusal("50x max=0.1").find("add eps="), std::string::npos);
  EXPECT_NE(refusal("50x spend=topk eps=0.1").find("draws nothing"), std::string::npos);
  EXPECT_NE(refusal("50x spend=topp eps=0.1").find("draws nothing"), std::string::npos);
  EXPECT_NE(refusal("50x spend=vattention").find("add eps="), std::string::npos);
  EXPECT_NE(refusal("50x eps=0.1 certify=bounded").find("spend=topk"), std::string::npos);
  EXPECT_NE(refusal("50x eps=0.1 spend=topk certify=bounded delta=0.1").find("no violation"), std::string::npos);
  EXPECT_NE(refusal("50x eps=0.1 certify=maybe").find("estimated or bounded"), std::string::npos);
  EXPECT_NE(refusal("total=0.2 eps=0.1 max=0.1").find("starts above it"), std::string::npos);
  EXPECT_NE(refusal("total=0.02 total@3=0.2 eps=0.1 max=0.1").find("starts above it"), std::string::npos);
  EXPECT_NE(refusal("50x p=0.9").find("spend=topp"), std::string::npos);
  EXPECT_NE(refusal("50x spend=topp p=1").find("below 1"), std::string::npos);
  EXPECT_NE(refusal("50x total=0.1").find("given twice"), std::string::npos);
  EXPECT_NE(refusal("index=sign").find("expected a budget"), std::string::npos);
  for (const char* text : {"",
                           "  ",
                           "0.5x",
                           "x",
                           "-50x",
                           "nanx",
                           "infx",
                           "50y",
                           "dense 50x",
                           "50x dense",
                           "total=",
                           "total=0",
                           "total=-1",
                           "total=1.5",
                           "total=nan",
                           "total=inf",
                           "total=0.0",
                           "total=101%",
                           "total=2%%",
                           "total=1e400",
                           "total=0.02 sink=-1",
                           "total=0.02 sink=1.5",
                           "total=0.02 local=99999999999",
                           "total=0.02 floor=1",
                           "total=0.02 floor=-0.1",
                           "total=0.02 min=x",
                           "total=0.02 index=",
                           "total=0.02 dense_layers=",
                           "total=0.02 dense_layers=1,",
                           "total=0.02 dense_layers=3-1",
                           "total=0.02 dense_layers=-1",
                           "total=0.02 total@=0.1",
                           "total=0.02 total@1-=0.1",
                           "total=0.02 =3",
                           "total=0.02 sink=1 sink=2",
                           "50x total@1=5 total@1-1=6",
                           "total@0=0.5"}) {
    EXPECT_FALSE(Policy::parse(text)) << text;
  }
}

TEST(Policy, CheckNamesLayersAndSelectors) {
  EXPECT_TRUE(parse("50x").check(4).ok());
  EXPECT_EQ(parse("50x dense_layers=4").check(4).code(), StatusCode::invalid_argument);
  const Status unknown = parse("50x index=magic:3").check(4);
  EXPECT_EQ(unknown.code(), StatusCode::not_found);
  EXPECT_NE(unknown.message().find("oracle"), std::string::npos) << unknown.message();
}

TEST(Policy, SinkAndLocalTakeAtMostAQuarter) {
  const Policy policy = parse("total=0.02 sink=4 local=32");
  EXPECT_EQ(split_budget(policy, 0, 16384).total, 328);
  EXPECT_EQ(split_budget(policy, 0, 16384).local, 32);
  EXPECT_EQ(split_budget(policy, 0, 16384).selected, 328 - 36);
  const TokenBudget small = split_budget(policy, 0, 2000);  // 40 tokens
  EXPECT_EQ(small.sink, 4);
  EXPECT_EQ(small.local, 6);
  EXPECT_EQ(small.selected, 30);
  const TokenBudget tiny = split_budget(parse("total=3 sink=4 local=4"), 0, 2000);
  EXPECT_EQ(tiny.sink + tiny.local, 0);
  EXPECT_EQ(tiny.selected, 3);
}

TEST(ExplainPolicy, CountsRowsAndIndex) {
  SelectorShape shape{.num_layers = 4, .num_kv_heads = 2, .group = 4, .head_dim = 64, .kv_dtype = DType::bf16};
  auto explanation = explain_policy(parse("50x index=sign"), shape, 16384);
  ASSERT_TRUE(explanation) << explanation.status().to_string();
  EXPECT_DOUBLE_EQ(explanation->row_bytes_per_token, 256.0);
  auto selector = make_selector("sign", shape);
  ASSERT_TRUE(selector);
  EXPECT_DOUBLE_EQ(explanation->bytes_ratio, 328.0 / 16384 + (*selector)->bytes_per_token() / 256.0);
  auto mixed = explain_policy(parse("50x index=sign dense_layers=0"), shape, 16384);
  ASSERT_TRUE(mixed);
  EXPECT_DOUBLE_EQ(mixed->bytes_ratio, (1.0 + 3.0 * explanation->bytes_ratio) / 4.0);
  const auto promised = explain_policy(parse("total=0.02 spend=priority eps=0.1 max=0.1 index=sign"), shape, 10000);
  ASSERT_TRUE(promised);
  EXPECT_EQ(promised->layers[0].budget.total, 200);
  EXPECT_EQ(promised->layers[0].max_tokens, 1000);
  EXPECT_DOUBLE_EQ(promised->fallback_bytes_ratio, 1.0 + promised->bytes_ratio);
  EXPECT_DOUBLE_EQ(explain_policy(parse("50x index=sign"), shape, 10000)->fallback_bytes_ratio, 0.0);
  EXPECT_DOUBLE_EQ(explain_policy(parse("dense"), shape, 100)->bytes_ratio, 1.0);
  EXPECT_FALSE(explain_policy(parse("total=5000 index=sign"), shape, 4096));
  EXPECT_FALSE(explain_policy(parse("50x index=nothing"), shape, 4096));
  EXPECT_FALSE(explain_policy(parse("50x"), shape, 0));
}

}  // namespace
}  // namespace rarefy
