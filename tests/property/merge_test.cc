// Merging (out, lse) pairs: the parts of any partition of the tokens give the whole.
#include "rarefy/attention/merge.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/support/decode_runs.h"

namespace rarefy::test {
namespace {

Status merge(int32_t head_dim, const MergeArgs& args) {
  const Expected<MergePlan> plan = MergePlan::make(Device{}, {head_dim});
  return plan ? plan->run(args) : plan.status();
}

constexpr int32_t kHeads = 4, kDim = 32, kTokens = 200;

// Parts are sparse decodes over disjoint lists of the same cache; the whole is the dense decode.
TEST(Merge, PartsOfAPartitionGiveTheWhole) {
  for (int32_t num_parts : {1, 2, 3, 7}) {
    AttentionCase all = {.num_q_heads = kHeads,
                         .num_kv_heads = 1,
                         .head_dim = kDim,
                         .kv_dtype = DType::f32,
                         .kv_lens = {kTokens},
                         .all_tokens = true,
                         .logit_spread = 4.0f,
                         .seed = 10u + static_cast<uint64_t>(num_parts)};
    AttentionData data(all, DecodeOp::sparse);
    for (const std::string& name : decode_names(DecodeOp::sparse, data.decode_problem())) {
      const DecodeOutputs whole = run_decode(DecodeOp::sparse, name, data);
      AttentionData part_data(all, DecodeOp::sparse);
      std::vector<float> outs, lses;
      for (int32_t part = 0; part < num_parts; ++part) {
        int32_t count = 0;
        for (int32_t token = 0; token < kTokens; ++token) {
          // Part 1 of 7 stays empty.
          const int32_t owner = num_parts == 7 && token % 7 == 1 ? 0 : token % num_parts;
          if (owner == part) part_data.token_ids[static_cast<size_t>(count++)] = token;
        }
        part_data.counts[0] = count;
        const DecodeOutputs outputs = run_decode(DecodeOp::sparse, name, part_data);
        outs.insert(outs.end(), outputs.out.begin(), outputs.out.end());
        lses.insert(lses.end(), outputs.lse.begin(), outputs.lse.end());
      }
      std::vector<float> out(kHeads * kDim), lse(kHeads);
      ASSERT_TRUE(merge(kDim, {num_parts, kHeads, outs.data(), lses.data(), out.data(), lse.data()}).ok());
      for (size_t i = 0; i < lse.size(); ++i) EXPECT_NEAR(lse[i], whole.lse[i], 4e-6) << name;
      for (size_t i = 0; i < out.size(); ++i) EXPECT_NEAR(out[i], whole.out[i], 4e-6) << name;
    }
  }
}

TEST(Merge, OnlyEmptyPartsGiveZeroAndMinusInfinity) {
  const std::vector<float> outs(2 * kDim, 0.0f), lses(2, -INFINITY);
  std::vector<float> out(kDim, NAN);
  float lse = NAN;
  ASSERT_TRUE(merge(kDim, {2, 1, outs.data(), lses.data(), out.data(), &lse}).ok());
  EXPECT_EQ(lse, -INFINITY);
  for (float value : out) EXPECT_EQ(value, 0.0f);
}

TEST(Merge, AnEmptyPartChangesNothing) {
  std::vector<float> outs(2 * kDim, 0.0f), lses = {1.25f, -INFINITY}, out(kDim);
  for (size_t i = 0; i < kDim; ++i) outs[i] = static_cast<float>(i) - 3.5f;
  float lse = 0.0f;
  ASSERT_TRUE(merge(kDim, {2, 1, outs.data(), lses.data(), out.data(), &lse}).ok());
  EXPECT_EQ(lse, 1.25f);
  for (size_t i = 0; i < kDim; ++i) EXPECT_EQ(out[i], outs[i]);
}

TEST(Merge, WorksInPlaceAndForFarApartParts) {
  std::vector<float> outs(2 * kDim), lses = {-500.0f, 700.0f};
  for (size_t i = 0; i < outs.size(); ++i) outs[i] = i < kDim ? 1.0f : 2.0f;
  ASSERT_TRUE(merge(kDim, {2, 1, outs.data(), lses.data(), outs.data(), lses.data()}).ok());
  EXPECT_EQ(lses[0], 700.0f);
  for (size_t i = 0; i < kDim; ++i) EXPECT_EQ(outs[i], 2.0f);
}

TEST(Merge, RefusesBadArguments) {
  float value = 0.0f;
  EXPECT_FALSE(merge(16, {0, 1, &value, &value, &value, nullptr}).ok());
  EXPECT_FALSE(merge(512, {1, 1, &value, &value, &value, nullptr}).ok());
  EXPECT_FALSE(merge(16, {1, 1, nullptr, &value, &value, nullptr}).ok());
  EXPECT_FALSE(merge(16, {1, 1, &value, &value, nullptr, nullptr}).ok());
}

}  // namespace
}  // namespace rarefy::test
