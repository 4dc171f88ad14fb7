// What the CUDA backend decides on the host, with or without a GPU: how lists are cut, and what it refuses before it looks for a device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>

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

using cuda::Cut;
using cuda::Shares;

TEST(CudaCut, LeavesCoverEveryListExactlyAndStayWithinCapacity) {
  int32_t most = 0;
  for (int32_t n = 0; n <= 200000; n += n < 10000 ? 1 : 97) {
    const Cut cut(n);
    const int32_t leaves = cuda::kQuadLeaves * cut.quads, steps = std::max(1, cuda::ceil_div(n, cuda::kStepTokens));
    ASSERT_EQ(cut.first_step(0), 0) << n;
    ASSERT_EQ(cut.first_step(leaves), steps) << n;
    for (int32_t leaf = 0; leaf < leaves; ++leaf) {
      const int32_t length = cut.first_step(leaf + 1) - cut.first_step(leaf);
      ASSERT_TRUE(length == cut.short_leaf || length == cut.short_leaf + 1) << n << " leaf " << leaf;
    }
    ASSERT_GT(cut.first_step(leaves - cuda::kQuadLeaves + 1), cut.first_step(leaves - cuda::kQuadLeaves))
        << n << ": the last quad is empty";
    ASSERT_GE(cut.quads, most) << n << ": a workspace for n tokens must hold every shorter list";
    most = cut.quads;
  }
  EXPECT_EQ(most, cuda::kMaxQuads);
  EXPECT_LE(cuda::kMaxQuads, 64) << "a lane of the merging warp has two quads";
  // As long as an int32 can say: nothing overflows.
  const Cut longest(INT32_MAX);
  EXPECT_EQ(longest.first_step(cuda::kQuadLeaves * longest.quads), 1 << 27);
}

// Whatever number of blocks a list has, its warps' leaves are all leaves in order, and a quad is within one block.
TEST(CudaShares, WarpsHaveEveryLeafOnceAndBlocksWholeQuads) {
  for (int32_t quads : {1, 2, 3, 5, 7, 8, 16, 32}) {
    for (int32_t blocks = 1; blocks <= 40; ++blocks) {
      const Shares shares(quads, blocks);
      ASSERT_LE(shares.blocks, blocks);
      ASSERT_GE(shares.blocks, 1);
      ASSERT_EQ(shares.first_leaf(quads, 0), 0);
      ASSERT_EQ(shares.first_leaf(quads, cuda::kBlockWarps * shares.blocks), cuda::kQuadLeaves * quads)
          << quads << " in " << blocks;
      for (int32_t warp = 0; warp < cuda::kBlockWarps * shares.blocks; ++warp) {
        const int32_t first = shares.first_leaf(quads, warp), end = shares.first_leaf(quads, warp + 1);
        ASSERT_LE(first, end);
        if (warp % cuda::kBlockWarps == 0) {
          ASSERT_EQ(first % cuda::kQuadLeaves, 0) << quads << " in " << blocks;
        }
        if (shares.warps_per_quad == 1) {
          ASSERT_EQ(first % cuda::kQuadLeaves, 0) << quads << " in " << blocks;
        } else {
          ASSERT_TRUE(end - first == cuda::kQuadLeaves / shares.warps_per_quad || end == cuda::kQuadLeaves * quads);
        }
      }
    }
  }
}

TEST(CudaShares, BlocksAreAsManyAsTheDeviceHolds) {
  constexpr int32_t kRoom = 264;
  EXPECT_EQ(cuda::blocks_per_list(2621, 8, kRoom), 8);     // a block for each quad
  EXPECT_EQ(cuda::blocks_per_list(2621, 32, kRoom), 8);    // 256 blocks
  EXPECT_EQ(cuda::blocks_per_list(2621, 64, kRoom), 4);    // 256
  EXPECT_EQ(cuda::blocks_per_list(2621, 128, kRoom), 2);   // 256
  EXPECT_EQ(cuda::blocks_per_list(2621, 512, kRoom), 1);   // two waves
  EXPECT_EQ(cuda::blocks_per_list(131072, 8, kRoom), 32);  // 256
  EXPECT_EQ(cuda::blocks_per_list(0, 1, kRoom), 1);
  for (int64_t lists : {int64_t{1}, int64_t{100}, int64_t{65535} * 64}) {
    const int32_t blocks = cuda::blocks_per_list(100000, lists, kRoom);
    EXPECT_TRUE(blocks >= 1 && blocks <= cuda::kMaxQuads) << lists;
  }
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
