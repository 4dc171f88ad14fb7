// What the CUDA backend decides on the host, with or without a GPU: how lists are cut, and what it refuses before it looks for a device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "attention/registry.h"
#include "cuda/decode/params.h"
#include "rarefy/attention/merge.h"

namespace rarefy {
namespace {

constexpr Device kGpu{DeviceKind::cuda, 0};

DecodeProblem problem() {
  DecodeProblem problem;
  problem.num_q_heads = 8;
  problem.num_kv_heads = 2;
  problem.head_dim = 128;
  problem.q_dtype = problem.kv_dtype = problem.out_dtype = DType::bf16;
  problem.max_selected = 100;
  return problem;
}

using cuda::Blocks;
using cuda::Cut;
using cuda::Shares;

TEST(CudaCut, LeavesCoverEveryListExactlyAndStayWithinCapacity) {
  for (int32_t num_lists : {1, cuda::kManyLists - 1, cuda::kManyLists, 64}) {
    int32_t most = 0;
    for (int32_t n = 0; n <= 200000; n += n < 10000 ? 1 : 97) {
      const Cut cut(n, num_lists);
      const int32_t leaves = cuda::kPairLeaves * cut.pairs(), steps = std::max(1, cuda::ceil_div(n, cuda::kStepTokens));
      ASSERT_EQ(cut.first_step(0), 0) << n;
      ASSERT_EQ(cut.first_step(leaves), steps) << n;
      // Whatever power of two they are dealt in, shares are even, and no pair is empty.
      for (int32_t share = 1; share <= leaves; share *= 2) {
        const int32_t least = static_cast<int32_t>(int64_t{steps} * share / leaves);
        if (share > 1) {
          ASSERT_GT(least, 0) << n;
        }
        for (int32_t leaf = 0; leaf < leaves; leaf += share) {
          const int32_t length = cut.first_step(leaf + share) - cut.first_step(leaf);
          ASSERT_TRUE(length == least || length == least + 1) << n << " leaf " << leaf << " to " << leaf + share;
        }
      }
      ASSERT_EQ(cut.pairs() & (cut.pairs() - 1), 0) << n << ": not a power of two";
      ASSERT_GE(cut.pairs(), most) << n << ": a workspace for n tokens must hold every shorter list";
      most = cut.pairs();
    }
    EXPECT_EQ(most, cuda::kMaxPairs);
    EXPECT_LE(cuda::kMaxPairs, 64) << "a lane of the merging warp has two parts";
    const Cut longest(cuda::kMaxTokens, num_lists);  // nothing overflows
    EXPECT_EQ(longest.first_step(cuda::kPairLeaves * longest.pairs()), cuda::kMaxTokens / cuda::kStepTokens);
  }
}

TEST(CudaCut, ManyListsHaveFewerAndLongerLeaves) {
  constexpr int32_t kFew = 8, kMany = 32;
  EXPECT_EQ(Cut(262, kFew).pairs(), 8);  // 17 steps: leaves of one, one of two
  EXPECT_EQ(Cut(262, kMany).pairs(), 4);
  EXPECT_EQ(Cut(1311, kFew).pairs(), 16);
  EXPECT_EQ(Cut(2621, kFew).pairs(), 32);
  EXPECT_EQ(Cut(2621, kMany).pairs(), 16);
}

// Whatever blocks a list has, their warps' leaves are all leaves in order, and a pair is within one block.
TEST(CudaShares, WarpsHaveEveryLeafOnceAndBlocksWholePairs) {
  for (int32_t pairs : {1, 2, 4, 8, 16, 32, 64}) {
    for (int32_t warps : {cuda::kMaxBlockWarps, cuda::kBlockWarps, cuda::kMinBlockWarps}) {
      for (int32_t blocks = 1; blocks * warps <= 512; ++blocks) {
        const Shares shares(pairs, {blocks, warps});
        const std::string what = std::to_string(pairs) + " in " + std::to_string(blocks) + " of " + std::to_string(warps);
        ASSERT_TRUE(shares.blocks >= 1 && shares.blocks <= blocks) << what;
        int32_t next = 0;
        for (int32_t block = 0; block < shares.blocks; ++block) {
          ASSERT_EQ(next % cuda::kPairLeaves, 0) << what;
          for (int32_t warp = 0; warp < warps; ++warp) {
            const int32_t first = shares.first_leaf(pairs, warps, block, warp),
                          end = shares.first_leaf(pairs, warps, block, warp + 1);
            ASSERT_EQ(first, next) << what;
            ASSERT_LE(first, end) << what;
            if (shares.two_warps) {
              ASSERT_EQ(end - first, warp < cuda::kPairLeaves * shares.block_pairs(pairs) ? 1 : 0) << what;
            } else {
              ASSERT_EQ(first % cuda::kPairLeaves, 0) << what;
            }
            next = end;
          }
        }
        ASSERT_EQ(next, cuda::kPairLeaves * pairs) << what;
      }
    }
  }
}

TEST(CudaBlocks, AreAsManyAsTheDeviceHolds) {
  constexpr int32_t kRoom = 264;
  const auto choose = [](int32_t n, int64_t lists) {
    const Blocks blocks = cuda::choose_blocks(Cut(n, 8).pairs(), lists, kRoom);
    return std::pair(blocks.per_list, blocks.warps);
  };
  EXPECT_EQ(choose(1311, 8), std::pair(16, 4));   // a block for each pair
  EXPECT_EQ(choose(2621, 8), std::pair(32, 4));   // 256 blocks
  EXPECT_EQ(choose(2621, 32), std::pair(8, 4));   // 256 blocks
  EXPECT_EQ(choose(2621, 64), std::pair(4, 4));   // 256
  EXPECT_EQ(choose(2621, 128), std::pair(2, 4));  // 256
  EXPECT_EQ(choose(2621, 256), std::pair(1, 4));  // 256
  EXPECT_EQ(choose(2621, 512), std::pair(1, 2));  // 512 half blocks at once
  EXPECT_EQ(choose(2621, 600),
            std::pair(2, 4));  // five waves of halves; as a whole three, of half blocks two that take twice as long
  EXPECT_EQ(choose(131072, 8), std::pair(32, 4));  // 256
  EXPECT_EQ(choose(0, 1), std::pair(1, 4));
  for (int64_t lists : {int64_t{1}, int64_t{100}, int64_t{65535} * 64}) {
    const Blocks blocks = cuda::choose_blocks(Cut(100000, 8).pairs(), lists, kRoom);
    EXPECT_TRUE(blocks.per_list >= 1 && blocks.per_list <= cuda::kMaxPairs) << lists;
  }
}

// The rule by which a kernel deals blocks says what the warps then have.
TEST(CudaDeal, BlocksAreTheFewestForTheShare) {
  for (const auto& [num_lists, block_warps] :
       {std::pair{8, cuda::kBlockWarps}, {32, cuda::kBlockWarps}, {8, cuda::kMaxBlockWarps}}) {
    const int32_t warps = block_warps;  // for lambdas
    for (int32_t n = 0; n <= 140000; n += n < 3000 ? 7 : 997) {
      const Cut cut(n, num_lists);
      ASSERT_EQ(cut.steps, cut.first_step(cuda::kPairLeaves * cut.pairs())) << n;
      const auto longest_share = [&](int32_t blocks) {
        const Shares shares(cut.pairs(), {blocks, warps});
        int32_t most = 0;
        for (int32_t block = 0; block < shares.blocks; ++block) {
          for (int32_t warp = 0; warp < warps; ++warp) {
            most = std::max(most, cut.first_step(shares.first_leaf(cut.pairs(), warps, block, warp + 1)) -
                                      cut.first_step(shares.first_leaf(cut.pairs(), warps, block, warp)));
          }
        }
        return most;
      };
      for (int32_t steps = 1; steps <= 2 * cut.steps; steps = steps * 5 / 4 + 1) {
        const int32_t blocks = cuda::blocks_within(cut, steps, warps),
                      leaf_steps = ((cut.steps - 1) >> cut.leaves_log2) + 1;
        const std::string what =
            std::to_string(n) + " tokens within " + std::to_string(steps) + ": " + std::to_string(blocks);
        ASSERT_TRUE(blocks >= 1 && blocks <= cut.pairs()) << what;
        ASSERT_LE(longest_share(blocks), std::max(steps, leaf_steps)) << what;
        // One fewer would have more, at least as long as all leaves of a list have the same length.
        if (blocks > 1 && cut.steps % (1 << cut.leaves_log2) == 0) {
          ASSERT_GT(longest_share(blocks - 1), steps) << what;
        }
      }
    }
  }
}

TEST(CudaCluster, FormsWhereTheNextKernelFitsBesideOrListsHaveTwoBlocks) {
  const auto forms = [](cuda::Blocks blocks, int64_t lists) { return cuda::forms_cluster(blocks, lists, 264, 132); };
  EXPECT_FALSE(forms({1, 4}, 8));
  EXPECT_TRUE(forms({16, 4}, 8));
  EXPECT_FALSE(forms({16, 4}, 9));
  EXPECT_TRUE(forms({16, 2}, 9)) << "half as large";
  EXPECT_FALSE(forms({16, 2}, 17));
  EXPECT_FALSE(forms({32, 4}, 1)) << "the hardware's limit";
  EXPECT_TRUE(forms({2, 4}, 128));
}

TEST(CudaCluster, BlocksHaveNoIdleWarpsWhereTheyFormOneByThat) {
  const auto is = [](cuda::Blocks blocks, int64_t lists, cuda::Blocks expected) {
    const cuda::Blocks got = cuda::without_idle_warps(blocks, lists, 264, 132);
    return got.per_list == expected.per_list && got.warps == expected.warps;
  };
  EXPECT_TRUE(is({8, 4}, 32, {8, 2}));
  EXPECT_TRUE(is({16, 4}, 8, {16, 4})) << "they form one anyway";
  EXPECT_TRUE(is({8, 4}, 64, {8, 4})) << "they form none either way";
  EXPECT_TRUE(is({16, 4}, 16, {8, 4})) << "16 small ones crowd";
  EXPECT_TRUE(is({32, 4}, 8, {32, 4})) << "16 of two pairs crowd too";
  EXPECT_TRUE(is({32, 4}, 16, {32, 4})) << "so are half as many for the device";
  EXPECT_TRUE(is({1, 2}, 300, {1, 2}));
}

TEST(CudaCluster, FourBlocksThatFormNoneAreTwoOfTwiceTheWarps) {
  const auto is = [](cuda::Blocks blocks, int64_t lists, int32_t room, cuda::Blocks expected) {
    const cuda::Blocks got = cuda::joined(blocks, lists, room, 132);
    return got.per_list == expected.per_list && got.warps == expected.warps;
  };
  EXPECT_TRUE(is({4, 4}, 64, 264, {2, 8}));
  EXPECT_TRUE(cuda::forms_cluster({2, 8}, 64, 264, 132));
  EXPECT_TRUE(is({4, 4}, 32, 264, {4, 4})) << "they form one anyway";
  EXPECT_TRUE(is({8, 4}, 32, 264, {8, 4})) << "four to a cluster would wait for each other";
  EXPECT_TRUE(is({4, 4}, 128, 528, {4, 4})) << "a block would not have a multiprocessor of its own";
  EXPECT_FALSE(cuda::next_fits({2, 8}, 64, 264, 132)) << "they take all of it";
}

struct Refusal {
  const char* reason;
  void (*change)(DecodeProblem&);
};

TEST(CudaRegistry, RefusesShapesWithTheReasonOnAnyMachine) {
  const Refusal refusals[] = {
      {"expected head_dim 64, 128 or 256, got 80", [](DecodeProblem& p) { p.head_dim = 80; }},
      {"expected q_dtype bf16 or f16, got f32", [](DecodeProblem& p) { p.q_dtype = DType::f32; }},
      {"expected kv_dtype equal to q_dtype, or f8_e4m3, got f16 with q_dtype bf16",
       [](DecodeProblem& p) { p.kv_dtype = DType::f16; }},
      {"sliding_window", [](DecodeProblem& p) { p.sliding_window = 64; }},
      {"at most 16 query heads", [](DecodeProblem& p) { p.num_q_heads = 34; }},
      {"num_queries", [](DecodeProblem& p) { p.num_queries = 9; }},
      {"max_kv_len and max_selected up to 134217728", [](DecodeProblem& p) { p.max_kv_len = cuda::kMaxTokens + 1; }},
  };
  for (const Refusal& refusal : refusals) {
    DecodeProblem wrong = problem();
    refusal.change(wrong);
    for (DecodeOp op : {DecodeOp::dense, DecodeOp::sparse}) {
      const Expected<DecodePlan> plan = DecodePlan::make(op, kGpu, wrong);
      ASSERT_FALSE(plan) << refusal.reason;
      EXPECT_NE(plan.status().message().find(refusal.reason), std::string::npos) << plan.status().message();
    }
  }
}

TEST(CudaRegistry, NamesAreStableAndTheDeviceIsLookedFor) {
  std::string names;
  for (const auto& entry : decode_implementations(DecodeOp::sparse)) {
    if (entry.device == DeviceKind::cuda) names += std::string(entry.name) + " ";
  }
  EXPECT_EQ(names, "cuda_sm90_mma cuda_sm89_mma cuda_sm80_mma ");
  // A device that no machine has: every entry that is compiled says what is there instead.
  const Expected<DecodePlan> plan = DecodePlan::make(DecodeOp::sparse, {DeviceKind::cuda, 4095}, problem());
  ASSERT_FALSE(plan);
  EXPECT_NE(plan.status().message().find("cuda_sm90_mma refuses"), std::string::npos) << plan.status().message();
  EXPECT_FALSE(MergePlan::make({DeviceKind::cuda, 4095}, {128}));
}

}  // namespace
}  // namespace rarefy
