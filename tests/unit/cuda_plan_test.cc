// What the CUDA backend decides on the host, with or without a GPU: how lists are cut, and what it refuses before it looks for a device.
#include <gtest/gtest.h>

#include <algorithm>
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

TEST(CudaSplits, CoverEveryListExactlyAndStayWithinCapacity) {
  int32_t most = 0;
  for (int32_t n = 1; n <= 200000; ++n) {
    const int32_t tokens = cuda::split_tokens(n), splits = cuda::num_splits(n);
    most = std::max(most, splits);
    ASSERT_EQ(tokens % cuda::kSmallSplit, 0) << n << ": a step for each warp";
    ASSERT_GE(static_cast<int64_t>(splits) * tokens, n) << n;
    ASSERT_LT(static_cast<int64_t>(splits - 1) * tokens, n) << n << ": the last split is empty";
    ASSERT_LE(most, cuda::max_splits(n)) << n << ": a workspace for n tokens must hold every shorter list";
    ASSERT_LE(splits, cuda::kMaxSplits) << n;
  }
  EXPECT_EQ(cuda::num_splits(0), 1);  // an empty list has a block that writes zeros
  EXPECT_LE(cuda::kMaxSplits, 64) << "a lane of the merging warp has two parts";
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
