// Dense decode: every implementation against the double-precision oracle, and the properties that hold without one.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "rarefy/core/device.h"
#include "tests/support/decode_runs.h"

namespace rarefy::test {
namespace {

constexpr DecodeOp kOp = DecodeOp::dense;
constexpr DType kKvDtypes[] = {DType::f32, DType::f16, DType::bf16};

TEST(DenseDecode, MatchesOracleForEveryDtypeAndHeadDim) {
  uint64_t seed = 1;
  for (DType kv_dtype : kKvDtypes) {
    for (int32_t head_dim : {16, 32, 48, 64, 80, 96, 112, 128, 160, 256}) {
      check_decode(kOp, {.head_dim = head_dim, .kv_dtype = kv_dtype, .kv_lens = {77}, .seed = seed++});
    }
  }
}

TEST(DenseDecode, MatchesOracleForEveryQueryAndOutputDtype) {
  for (DType q_dtype : kKvDtypes) {
    for (DType out_dtype : kKvDtypes) {
      check_decode(kOp, {.head_dim = 64, .q_dtype = q_dtype, .out_dtype = out_dtype, .kv_lens = {65}, .seed = 50});
    }
  }
}

TEST(DenseDecode, MatchesOracleForEveryGroup) {
  for (int32_t group = 1; group <= 16; ++group) {
    check_decode(
        kOp, {.num_q_heads = 2 * group, .num_kv_heads = 2, .kv_lens = {70}, .seed = 100u + static_cast<uint64_t>(group)});
  }
}

TEST(DenseDecode, MatchesOracleAtAwkwardLengths) {
  uint64_t seed = 200;
  for (int32_t page_size : {1, 16, 256}) {
    for (int32_t kv_len : {0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257, 513, 1030, 4500}) {
      check_decode(kOp, {.num_q_heads = 4, .num_kv_heads = 1, .page_size = page_size, .kv_lens = {kv_len}, .seed = seed++});
    }
  }
}

TEST(DenseDecode, MatchesOracleForEveryLayout) {
  for (KvLayout layout : {KvLayout::nhd, KvLayout::hnd, KvLayout::head_major}) {
    check_decode(kOp, {.num_q_heads = 12, .num_kv_heads = 3, .kv_lens = {200, 0, 33}, .layout = layout, .seed = 300});
  }
}

TEST(DenseDecode, MatchesOracleForSeveralQueriesSoftCapAndSink) {
  for (int32_t num_queries = 1; num_queries <= 8; ++num_queries) {
    check_decode(kOp, {.num_queries = num_queries,
                       .kv_lens = {100, 5, 1, 0},
                       .logit_soft_cap = 3.0f,
                       .sink_logit = true,
                       .seed = 400u + static_cast<uint64_t>(num_queries)});
  }
}

TEST(DenseDecode, MatchesOracleForEveryWindow) {
  uint64_t seed = 450;
  for (int32_t page_size : {1, 16, 64}) {
    for (int32_t window : {1, 2, 31, 32, 33, 200, 1000}) {
      check_decode(kOp, {.page_size = page_size, .kv_lens = {300, 1, 0, 40}, .sliding_window = window, .seed = seed++});
    }
  }
  // Several queries see different windows: the reference alone takes that.
  check_decode(kOp, {.num_queries = 3, .kv_lens = {50}, .sliding_window = 7, .seed = 499});
}

TEST(DenseDecode, MatchesOracleForExtremeLogits) {
  for (float spread : {0.0f, 20.0f, 200.0f}) {
    check_decode(kOp, {.kv_lens = {300}, .logit_spread = spread, .seed = 500});
  }
}

TEST(DenseDecode, BatchMatesAndThreadsDoNotChangeABit) {
  const AttentionCase alone = {.kv_lens = {3000}, .seed = 600};
  const AttentionCase among = {.kv_lens = {3000, 17, 5000, 1}, .seed = 600};
  AttentionData data_alone(alone, kOp), data_among(among, kOp);
  // The same query: the first rows of both are sequence 0, and rows of the cache depend on (seed, sequence, token, head) only.
  std::memcpy(data_among.q.data(), data_alone.q.data(), data_alone.q.size());
  for (const std::string& name : decode_names(kOp, data_alone.decode_problem())) {
    set_num_threads(1);
    const DecodeOutputs first = run_decode(kOp, name, data_alone);
    for (int32_t threads : {1, 2, 3, 7}) {
      set_num_threads(threads);
      const DecodeOutputs again = run_decode(kOp, name, data_alone), beside = run_decode(kOp, name, data_among);
      EXPECT_EQ(first.out, again.out) << name << " threads=" << threads;
      EXPECT_EQ(first.lse, again.lse) << name << " threads=" << threads;
      EXPECT_TRUE(std::equal(first.out.begin(), first.out.end(), beside.out.begin())) << name << " threads=" << threads;
      EXPECT_TRUE(std::equal(first.lse.begin(), first.lse.end(), beside.lse.begin())) << name << " threads=" << threads;
    }
    set_num_threads(0);
  }
}

TEST(DenseDecode, PageSizeAndLayoutDoNotChangeABit) {
  const AttentionCase base = {.kv_lens = {700}, .seed = 700};
  AttentionData data(base, kOp);
  for (const std::string& name : decode_names(kOp, data.decode_problem())) {
    const DecodeOutputs expected = run_decode(kOp, name, data);
    for (KvLayout layout : {KvLayout::nhd, KvLayout::hnd, KvLayout::head_major}) {
      for (int32_t page_size : {1, 64, 256}) {
        AttentionCase other = base;
        other.layout = layout;
        other.page_size = page_size;
        AttentionData other_data(other, kOp);
        EXPECT_EQ(expected, run_decode(kOp, name, other_data)) << name << " " << other.to_string();
      }
    }
  }
}

TEST(DenseDecode, ScalingTheValuesByAPowerOfTwoScalesTheOutputExactly) {
  AttentionData data({.kv_dtype = DType::f32, .kv_lens = {130}, .seed = 800}, kOp);
  for (const std::string& name : decode_names(kOp, data.decode_problem())) {
    AttentionData scaled({.kv_dtype = DType::f32, .kv_lens = {130}, .seed = 800}, kOp);
    auto* values = reinterpret_cast<float*>(scaled.values.data());
    for (size_t i = 0; i < scaled.values.size() / sizeof(float); ++i) values[i] *= 4.0f;
    DecodeOutputs expected = run_decode(kOp, name, data);
    for (float& value : expected.out) value *= 4.0f;
    EXPECT_EQ(expected, run_decode(kOp, name, scaled)) << name;
  }
}

// A key component that is the same everywhere adds the same constant to every logit.
TEST(DenseDecode, AConstantAddedToEveryLogitChangesOnlyLse) {
  constexpr int32_t kHeadDim = 64;
  AttentionData data(
      {.num_q_heads = 1, .num_kv_heads = 1, .head_dim = kHeadDim, .kv_dtype = DType::f32, .kv_lens = {90}, .seed = 900},
      kOp);
  auto* q = reinterpret_cast<float*>(data.q.data());
  auto* keys = reinterpret_cast<float*>(data.keys.data());
  q[0] = 1.0f / data.scale;
  for (const std::string& name : decode_names(kOp, data.decode_problem())) {
    DecodeOutputs results[2];
    for (int which = 0; which < 2; ++which) {
      for (int32_t token = 0; token < 90; ++token) keys[data.row_offset(0, token, 0)] = which == 0 ? 0.0f : 8.0f;
      results[which] = run_decode(kOp, name, data);
    }
    EXPECT_NEAR(results[1].lse[0], results[0].lse[0] + 8.0f, 4e-6f) << name;
    for (int32_t d = 0; d < kHeadDim; ++d)
      EXPECT_NEAR(results[1].out[static_cast<size_t>(d)], results[0].out[static_cast<size_t>(d)], 4e-6f) << name;
  }
}

}  // namespace
}  // namespace rarefy::test
