// Sparse decode: every implementation against the double-precision oracle, and the properties that hold without one. Rows
// that no list names are NaN in every test.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "rarefy/core/device.h"
#include "tests/support/decode_runs.h"

namespace rarefy::test {
namespace {

constexpr DecodeOp kOp = DecodeOp::sparse;
constexpr DType kKvDtypes[] = {DType::f32, DType::f16, DType::bf16};
constexpr ListScope kScopes[] = {ListScope::kv_head, ListScope::query_head};

TEST(SparseDecode, MatchesOracleForEveryDtypeHeadDimAndScope) {
  uint64_t seed = 1;
  for (ListScope scope : kScopes) {
    for (DType kv_dtype : kKvDtypes) {
      for (int32_t head_dim : {16, 48, 64, 80, 128, 256}) {
        check_decode(kOp,
                     {.head_dim = head_dim, .kv_dtype = kv_dtype, .kv_lens = {333, 40}, .scope = scope, .seed = seed++});
      }
    }
  }
}

TEST(SparseDecode, MatchesOracleForEveryGroup) {
  for (ListScope scope : kScopes) {
    for (int32_t group : {1, 2, 3, 4, 5, 7, 8, 16}) {
      check_decode(kOp, {.num_q_heads = 2 * group,
                         .num_kv_heads = 2,
                         .kv_lens = {250},
                         .scope = scope,
                         .seed = 100u + static_cast<uint64_t>(group)});
    }
  }
}

TEST(SparseDecode, MatchesOracleAtAwkwardLengths) {
  uint64_t seed = 200;
  for (int32_t page_size : {1, 16, 256}) {
    for (int32_t kv_len : {0, 1, 31, 32, 33, 64, 257, 1030, 4500}) {
      for (double density : {0.02, 0.5}) {
        check_decode(kOp, {.num_q_heads = 4,
                           .num_kv_heads = 1,
                           .page_size = page_size,
                           .kv_lens = {kv_len},
                           .density = density,
                           .seed = seed++});
      }
    }
  }
}

TEST(SparseDecode, MatchesOracleForEveryLayoutWithFallbacks) {
  for (KvLayout layout : {KvLayout::nhd, KvLayout::hnd, KvLayout::head_major}) {
    check_decode(kOp, {.num_q_heads = 12,
                       .num_kv_heads = 3,
                       .kv_lens = {200, 0, 33},
                       .layout = layout,
                       .dense_fallback = true,
                       .seed = 300});
  }
}

TEST(SparseDecode, MatchesOracleForSeveralQueriesSoftCapAndSink) {
  for (ListScope scope : kScopes) {
    for (int32_t num_queries : {1, 2, 5, 8}) {
      check_decode(kOp, {.num_queries = num_queries,
                         .kv_lens = {300, 5, 1, 0},
                         .scope = scope,
                         .density = 0.4,
                         .dense_fallback = num_queries == 5,
                         .logit_soft_cap = 3.0f,
                         .sink_logit = true,
                         .seed = 400u + static_cast<uint64_t>(num_queries)});
    }
  }
}

TEST(SparseDecode, MatchesOracleForExtremeLogits) {
  for (float spread : {0.0f, 20.0f, 200.0f}) check_decode(kOp, {.kv_lens = {300}, .logit_spread = spread, .seed = 500});
}

TEST(SparseDecode, EmptyListsGiveZeroAndMinusInfinity) {
  AttentionData data({.kv_lens = {50, 0}, .density = 0.0, .seed = 550}, kOp);
  for (const std::string& name : decode_names(kOp, data.decode_problem())) {
    const DecodeOutputs outputs = run_decode(kOp, name, data);
    for (float value : outputs.out) EXPECT_EQ(value, 0.0f) << name;
    for (float value : outputs.lse) EXPECT_EQ(value, -INFINITY) << name;
    for (float value : outputs.rel_std) EXPECT_EQ(value, 0.0f) << name;
    for (float value : outputs.out_rel_std) EXPECT_EQ(value, 0.0f) << name;
  }
}

TEST(SparseDecode, AllTokensSelectedEqualsDenseBitForBit) {
  const AttentionCase all = {.kv_lens = {1500, 300}, .all_tokens = true, .seed = 600};
  AttentionData sparse(all, kOp), dense(all, DecodeOp::dense);
  for (const std::string& name : decode_names(kOp, sparse.decode_problem())) {
    const DecodeOutputs got = run_decode(kOp, name, sparse), expected = run_decode(DecodeOp::dense, name, dense);
    EXPECT_EQ(got.out, expected.out) << name;
    EXPECT_EQ(got.lse, expected.lse) << name;
    for (float value : got.rel_std) EXPECT_EQ(value, 0.0f) << name;
    for (float value : got.out_rel_std) EXPECT_EQ(value, 0.0f) << name;
  }
}

TEST(SparseDecode, WithoutSampledTokensTheErrorsAreExactlyZero) {
  AttentionData data({.kv_lens = {400}, .log_weights = false, .seed = 650}, kOp);
  for (bool nullable : {true, false}) {
    for (const std::string& name : decode_names(kOp, data.decode_problem())) {
      Expected<DecodePlan> plan = forced_plan(kOp, data.decode_problem(), name);
      ASSERT_TRUE(plan);
      DecodeArgs args = data.decode_args();
      for (size_t i = 0; i < data.log_weight.size(); ++i) data.log_weight[i] = 0.0f;
      args.index.log_weight = nullable ? nullptr : data.log_weight.data();
      args.workspace_bytes = plan->workspace_bytes();
      args.workspace = data.reserve_workspace(args.workspace_bytes);
      data.poison_outputs();
      ASSERT_TRUE(plan->run(args).ok());
      for (size_t i = 0; i < data.rel_std.size(); ++i) {
        EXPECT_EQ(data.rel_std[i], 0.0f) << name;
        EXPECT_EQ(data.out_rel_std[i], 0.0f) << name;
      }
    }
  }
}

TEST(SparseDecode, OptionalOutputsDoNotChangeTheOthers) {
  AttentionData data({.kv_lens = {900}, .seed = 660}, kOp);
  for (const std::string& name : decode_names(kOp, data.decode_problem())) {
    const DecodeOutputs all = run_decode(kOp, name, data);
    Expected<DecodePlan> plan = forced_plan(kOp, data.decode_problem(), name);
    ASSERT_TRUE(plan);
    for (int mask = 0; mask < 8; ++mask) {
      DecodeArgs args = data.decode_args();
      if ((mask & 1) == 0) args.lse = nullptr;
      if ((mask & 2) == 0) args.rel_std = nullptr;
      if ((mask & 4) == 0) args.out_rel_std = nullptr;
      args.workspace_bytes = plan->workspace_bytes();
      args.workspace = data.reserve_workspace(args.workspace_bytes);
      data.poison_outputs();
      ASSERT_TRUE(plan->run(args).ok());
      EXPECT_EQ(data.out_values(), all.out) << name << " mask=" << mask;
      for (size_t i = 0; i < all.lse.size(); ++i) {
        if (args.lse != nullptr) {
          EXPECT_EQ(args.lse[i], all.lse[i]);
        }
        if (args.rel_std != nullptr) {
          EXPECT_EQ(args.rel_std[i], all.rel_std[i]);
        }
        if (args.out_rel_std != nullptr) {
          EXPECT_EQ(args.out_rel_std[i], all.out_rel_std[i]);
        }
      }
    }
  }
}

TEST(SparseDecode, BatchMatesAndThreadsDoNotChangeABit) {
  const AttentionCase alone = {.kv_lens = {3000}, .density = 0.5, .seed = 700};
  AttentionData data_alone(alone, kOp);
  // Give sequence 0 of the batch the lists of the single sequence; its rows are the same and are all present with density 1.
  const AttentionCase full = {.kv_lens = {3000, 17, 2500, 1}, .density = 2.0, .seed = 700};
  AttentionData data_full(full, kOp);
  std::memcpy(data_full.q.data(), data_alone.q.data(), data_alone.q.size());
  for (size_t list = 0; list < data_alone.counts.size(); ++list) {
    data_full.counts[list] = data_alone.counts[list];
    for (size_t i = 0; i < 3000; ++i) {
      data_full.token_ids[list * 3000 + i] = data_alone.token_ids[list * 3000 + i];
      data_full.log_weight[list * 3000 + i] = data_alone.log_weight[list * 3000 + i];
    }
  }
  for (const std::string& name : decode_names(kOp, data_alone.decode_problem())) {
    set_num_threads(1);
    const DecodeOutputs first = run_decode(kOp, name, data_alone);
    for (int32_t threads : {1, 2, 3, 7}) {
      set_num_threads(threads);
      EXPECT_EQ(first, run_decode(kOp, name, data_alone)) << name << " threads=" << threads;
      const DecodeOutputs beside = run_decode(kOp, name, data_full);
      EXPECT_TRUE(std::equal(first.out.begin(), first.out.end(), beside.out.begin())) << name << " threads=" << threads;
      EXPECT_TRUE(std::equal(first.lse.begin(), first.lse.end(), beside.lse.begin())) << name << " threads=" << threads;
      EXPECT_TRUE(std::equal(first.out_rel_std.begin(), first.out_rel_std.end(), beside.out_rel_std.begin())) << name;
    }
    set_num_threads(0);
  }
}

// A token that is heavy and sampled appears once with weight 0, and then counts like any other: c = exp(s), no variance.
TEST(SparseDecode, AHeavyTokenCountsOnceWithWeightZero) {
  AttentionData data({.num_q_heads = 1, .num_kv_heads = 1, .kv_lens = {10}, .all_tokens = true, .seed = 800}, kOp);
  for (const std::string& name : decode_names(kOp, data.decode_problem())) {
    data.counts[0] = 1;
    std::vector<double> logits(10);
    for (int32_t token = 0; token < 10; ++token) {
      data.token_ids[0] = token;
      logits[static_cast<size_t>(token)] = run_decode(kOp, name, data).lse[0];  // one token: its logit
    }
    for (int32_t token = 0; token < 10; ++token) data.token_ids[static_cast<size_t>(token)] = token;
    data.counts[0] = 10;
    data.log_weight[3] = 1.5f;
    double denominator = 0.0, variance = 0.0;
    for (size_t i = 0; i < 10; ++i) {
      const double c = std::exp(logits[i] + data.log_weight[i]);
      denominator += c;
      variance += c * c * (1.0 - std::exp(-data.log_weight[i]));
    }
    const DecodeOutputs got = run_decode(kOp, name, data);
    const double tolerance = 2e-6 + 2.0 * weight_rounding(name);
    EXPECT_NEAR(got.lse[0], std::log(denominator), tolerance) << name;
    EXPECT_NEAR(got.rel_std[0], std::sqrt(variance) / denominator, tolerance) << name;
    data.log_weight[3] = 0.0f;
    data.token_ids[0] = 0;
  }
}

}  // namespace
}  // namespace rarefy::test
