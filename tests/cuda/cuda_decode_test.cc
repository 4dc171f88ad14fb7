// Dense and sparse decode on a GPU against the double-precision oracle. Rows that no list names are NaN in every test.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "tests/cuda/device_decode.h"

namespace rarefy::test {
namespace {

constexpr DecodeOp kDense = DecodeOp::dense, kSparse = DecodeOp::sparse;

struct Types {
  DType q, kv;
};
constexpr Types kTypes[] = {
    {DType::bf16, DType::bf16}, {DType::f16, DType::f16}, {DType::bf16, DType::f8_e4m3}, {DType::f16, DType::f8_e4m3}};

AttentionCase base(Types types = kTypes[0]) { return {.head_dim = 128, .q_dtype = types.q, .kv_dtype = types.kv}; }

TEST(CudaDecode, MatchesOracleForEveryTypeHeadDimAndScope) {
  uint64_t seed = 1;
  for (const Types types : kTypes) {
    for (int32_t head_dim : {64, 128, 256}) {
      for (DType out_dtype : {DType::f32, types.q}) {
        AttentionCase c = base(types);
        c.head_dim = head_dim;
        c.out_dtype = out_dtype;
        c.kv_lens = {333, 40};
        c.kv_scales = types.kv == DType::f8_e4m3 && out_dtype == DType::f32;
        c.seed = seed++;
        check_device_decode(kDense, c);
        for (ListScope scope : {ListScope::kv_head, ListScope::query_head}) {
          c.scope = scope;
          check_device_decode(kSparse, c);
        }
      }
    }
  }
}

TEST(CudaDecode, MatchesOracleForEveryGroup) {
  for (int32_t head_dim : {64, 128, 256}) {
    for (int32_t group : {1, 2, 3, 4, 5, 7, 8, 9, 16}) {
      AttentionCase c = base();
      c.head_dim = head_dim;
      c.num_q_heads = 2 * group;
      c.num_kv_heads = 2;
      c.kv_lens = {250};
      c.seed = 100u + static_cast<uint64_t>(group);
      check_device_decode(kDense, c);
      check_device_decode(kSparse, c);
    }
  }
}

TEST(CudaDecode, MatchesOracleAtAwkwardLengths) {
  uint64_t seed = 200;
  for (int32_t page_size : {1, 16, 256}) {
    for (int32_t kv_len : {0, 1, 15, 16, 17, 63, 64, 65, 511, 513, 1030, 4500}) {
      for (double density : {0.02, 0.5}) {
        AttentionCase c = base();
        c.num_q_heads = 4;
        c.num_kv_heads = 1;
        c.page_size = page_size;
        c.kv_lens = {kv_len};
        c.density = density;
        c.seed = seed++;
        check_device_decode(kDense, c);
        check_device_decode(kSparse, c);
      }
    }
  }
}

// Of 16, 32 and 64 pairs.
TEST(CudaDecode, MatchesOracleForLongLists) {
  for (int32_t kv_len : {2000, 7000, 40000}) {
    AttentionCase c = base();
    c.num_q_heads = 4;
    c.num_kv_heads = 1;
    c.kv_lens = {kv_len, 300};
    c.density = 0.9;
    c.seed = static_cast<uint64_t>(kv_len);
    check_device_decode(kDense, c);
    check_device_decode(kSparse, c);
    c.dense_fallback = true;
    check_device_decode(kSparse, c);
  }
}

// The more lists, the fewer blocks each has: on 132 multiprocessors a block has a pair, then (batch 24) lists two blocks of eight warps, then each warp
// has a pair or several, then blocks have half the warps. Ragged lists and dense ones among them.
TEST(CudaDecode, MatchesOracleHoweverManyBlocksAListHas) {
  for (size_t batch : {5, 24, 50, 120, 140}) {
    for (int32_t head_dim : {64, 128, 256}) {
      if (head_dim != 128 && batch != 50) continue;
      AttentionCase c = base();
      c.num_q_heads = 4;
      c.num_kv_heads = 2;
      c.head_dim = head_dim;
      c.kv_lens.clear();
      for (size_t i = 0; i < batch; ++i) c.kv_lens.push_back(static_cast<int32_t>(i * 397 % 1201));
      c.density = 0.3;
      c.dense_fallback = true;
      c.seed = 350 + batch;
      check_device_decode(kSparse, c);
    }
  }
}

// Some lists ten times as long as others of their sequence: blocks are dealt by length, from many for each list to two.
TEST(CudaDecode, MatchesOracleWhereBlocksAreDealtByLength) {
  for (size_t batch : {2, 9, 17, 33}) {
    for (int32_t head_dim : {64, 128, 256}) {
      if (head_dim != 128 && batch != 17) continue;
      AttentionCase c = base();
      c.num_q_heads = 16;
      c.num_kv_heads = 8;
      c.head_dim = head_dim;
      c.kv_lens.clear();
      for (size_t i = 0; i < batch; ++i) c.kv_lens.push_back(static_cast<int32_t>(600 + i * 397 % 1201));
      c.density = 0.08;
      c.dense_fallback = true;
      c.seed = 370 + batch;
      check_device_decode(kSparse, c);
    }
  }
}

// The same for the sanitizers, which take long.
TEST(CudaDecode, MatchesOracleForManyShortLists) {
  for (const auto& [batch, longest] :
       {std::pair<size_t, size_t>{24, 420}, {50, 220}, {140, 220}}) {  // 24: blocks of eight warps
    AttentionCase c = base();
    c.num_q_heads = 4;
    c.num_kv_heads = 2;
    c.kv_lens.clear();
    for (size_t i = 0; i < batch; ++i) c.kv_lens.push_back(static_cast<int32_t>(i * 37 % (longest + 1)));
    c.density = 0.9;
    c.seed = 390 + batch;
    check_device_decode(kSparse, c);
  }
  AttentionCase c = base();  // many blocks for every list, and lists of all lengths
  c.num_q_heads = c.num_kv_heads = 8;
  c.kv_lens = {700, 450, 90};
  c.density = 0.05;
  c.dense_fallback = true;
  c.seed = 395;
  check_device_decode(kSparse, c);
}

TEST(CudaDecode, MatchesOracleForEveryLayoutWithFallbacks) {
  for (KvLayout layout : {KvLayout::nhd, KvLayout::hnd, KvLayout::head_major}) {
    AttentionCase c = base();
    c.num_q_heads = 12;
    c.num_kv_heads = 3;
    c.kv_lens = {200, 0, 33};
    c.layout = layout;
    c.dense_fallback = true;
    c.seed = 300;
    check_device_decode(kDense, c);
    check_device_decode(kSparse, c);
  }
}

TEST(CudaDecode, MatchesOracleForSeveralQueriesSoftCapAndSink) {
  for (ListScope scope : {ListScope::kv_head, ListScope::query_head}) {
    for (int32_t num_queries : {1, 2, 5, 8}) {
      for (int32_t head_dim : {64, 128, 256}) {
        AttentionCase c = base();
        c.head_dim = head_dim;
        c.num_queries = num_queries;
        c.kv_lens = {300, 5, 1, 0};
        c.scope = scope;
        c.density = 0.4;
        c.dense_fallback = num_queries == 5;
        c.logit_soft_cap = 3.0f;
        c.sink_logit = true;
        c.seed = 400u + static_cast<uint64_t>(num_queries);
        check_device_decode(kDense, c);
        check_device_decode(kSparse, c);
      }
    }
  }
}

TEST(CudaDecode, MatchesOracleForExtremeLogits) {
  for (const Types types : kTypes) {
    for (float spread : {0.0f, 20.0f, 60.0f}) {
      AttentionCase c = base(types);
      c.kv_lens = {300};
      c.logit_spread = spread;
      c.seed = 500;
      check_device_decode(kSparse, c);
    }
  }
}

TEST(CudaDecode, EmptyListsGiveZeroAndMinusInfinity) {
  AttentionCase c = base();
  c.kv_lens = {50, 0};
  c.density = 0.0;
  AttentionData data(c, kSparse);
  const DecodeOutputs outputs = DeviceDecode(kSparse, data).run();
  for (float value : outputs.out) EXPECT_EQ(value, 0.0f);
  for (float value : outputs.lse) EXPECT_EQ(value, -INFINITY);
  for (float value : outputs.rel_std) EXPECT_EQ(value, 0.0f);
  for (float value : outputs.out_rel_std) EXPECT_EQ(value, 0.0f);
}

TEST(CudaDecode, AllTokensSelectedEqualsDenseBitForBit) {
  AttentionCase c = base();
  c.kv_lens = {1500, 300, 9000};
  c.all_tokens = true;
  c.seed = 600;
  AttentionData sparse(c, kSparse), dense(c, kDense);
  const DecodeOutputs got = DeviceDecode(kSparse, sparse).run(), expected = DeviceDecode(kDense, dense).run();
  EXPECT_EQ(got.out, expected.out);
  EXPECT_EQ(got.lse, expected.lse);
  for (float value : got.rel_std) EXPECT_EQ(value, 0.0f);
  for (float value : got.out_rel_std) EXPECT_EQ(value, 0.0f);
}

TEST(CudaDecode, UnsortedListsGiveTheSameWithinTheBound) {
  AttentionCase c = base();
  c.kv_lens = {3000};
  c.density = 0.3;
  c.seed = 620;
  AttentionData data(c, kSparse);
  const auto capacity = static_cast<size_t>(data.decode_problem().max_selected);
  for (size_t list = 0; list < data.counts.size(); ++list) {
    std::reverse(&data.token_ids[list * capacity], &data.token_ids[list * capacity] + data.counts[list]);
    std::reverse(&data.log_weight[list * capacity], &data.log_weight[list * capacity] + data.counts[list]);
  }
  check_device_decode(kSparse, c, data);
}

TEST(CudaDecode, OptionalOutputsDoNotChangeTheOthers) {
  for (int32_t group : {4, 8, 16}) {
    AttentionCase c = base();
    c.num_q_heads = 2 * group;
    c.kv_lens = {900};
    c.seed = 660;
    AttentionData data(c, kSparse);
    DeviceDecode device(kSparse, data);
    const DecodeOutputs all = device.run();
    const Expected<DecodePlan> plan = device.plan();
    ASSERT_TRUE(plan);
    for (int mask = 0; mask < 8; ++mask) {
      DecodeArgs args = device.args();
      if ((mask & 1) == 0) args.lse = nullptr;
      if ((mask & 2) == 0) args.rel_std = nullptr;
      if ((mask & 4) == 0) args.out_rel_std = nullptr;
      device.poison_outputs();
      ASSERT_TRUE(plan->run(args).ok());
      const DecodeOutputs got = device.outputs();
      EXPECT_EQ(got.out, all.out) << mask;
      if (args.lse != nullptr) {
        EXPECT_EQ(got.lse, all.lse);
      }
      if (args.rel_std != nullptr) {
        EXPECT_EQ(got.rel_std, all.rel_std);
      }
      if (args.out_rel_std != nullptr) {
        EXPECT_EQ(got.out_rel_std, all.out_rel_std);
      }
      for (float value : args.lse == nullptr ? got.lse : std::vector<float>{NAN}) EXPECT_TRUE(std::isnan(value));
    }
  }
}

// Alone, among a few others and among so many that other warps do its work, in a plan with room for longer lists (another grid), and
// again in the same workspace.
TEST(CudaDecode, CompanyCapacityAndRepetitionDoNotChangeABit) {
  for (int32_t kv_len : {40, 700, 6000}) {
    AttentionCase c = base();
    c.kv_lens = {kv_len};
    c.density = 0.5;
    c.seed = 700;
    AttentionData alone(c, kSparse);
    DeviceDecode device(kSparse, alone);
    const DecodeOutputs first = device.run();
    for (size_t batch : {4, 24, 50, 140}) {
      AttentionCase full = c;
      full.kv_lens.resize(batch, 300);
      full.kv_lens[1] = 17, full.kv_lens[2] = 9000, full.kv_lens[3] = 1;
      full.density = 2.0;
      AttentionData among(full, kSparse);
      std::memcpy(among.q.data(), alone.q.data(), alone.q.size());
      const auto capacity = static_cast<size_t>(alone.decode_problem().max_selected),
                 larger = static_cast<size_t>(among.decode_problem().max_selected);
      for (size_t list = 0; list < alone.counts.size(); ++list) {
        among.counts[list] = alone.counts[list];
        for (size_t i = 0; i < static_cast<size_t>(alone.counts[list]); ++i) {
          among.token_ids[list * larger + i] = alone.token_ids[list * capacity + i];
          among.log_weight[list * larger + i] = alone.log_weight[list * capacity + i];
        }
      }
      const DecodeOutputs beside = DeviceDecode(kSparse, among).run();
      EXPECT_TRUE(std::equal(first.out.begin(), first.out.end(), beside.out.begin())) << kv_len << " among " << batch;
      EXPECT_TRUE(std::equal(first.lse.begin(), first.lse.end(), beside.lse.begin())) << kv_len << " among " << batch;
      EXPECT_TRUE(std::equal(first.out_rel_std.begin(), first.out_rel_std.end(), beside.out_rel_std.begin()))
          << kv_len << " among " << batch;
    }
    const Expected<DecodePlan> plan = device.plan();
    ASSERT_TRUE(plan);
    for (int repeat = 0; repeat < 3; ++repeat) {
      device.poison_outputs();
      ASSERT_TRUE(plan->run(device.args()).ok());
      EXPECT_EQ(device.outputs(), first);
    }
  }
}

TEST(CudaDecode, RunsInACapturedGraphAndLeavesItsWorkspaceReady) {
  AttentionCase c = base();
  c.kv_lens = {5000, 70};
  c.density = 0.4;
  c.seed = 750;
  AttentionData data(c, kSparse);
  DeviceDecode device(kSparse, data);
  const DecodeOutputs expected = device.run();
  const Expected<DecodePlan> plan = device.plan();
  ASSERT_TRUE(plan);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  // Two steps in one workspace, one after the other.
  for (int step = 0; step < 2; ++step) {
    const Status status = plan->run(device.args(), Stream{stream});
    EXPECT_TRUE(status.ok()) << status.to_string();
  }
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  cudaGraphExec_t replay = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&replay, graph, 0), cudaSuccess);
  for (int i = 0; i < 3; ++i) {
    device.poison_outputs();
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    ASSERT_EQ(cudaGraphLaunch(replay, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(device.outputs(), expected);
  }
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

struct Mistake {
  const char* message;
  void (*make)(AttentionData&);
};

// What lies in device memory cannot be refused: it is left out, nothing wild is read, and check() names the place.
TEST(CudaDecode, ReportsBadIdsCountsPagesAndLengths) {
  const Mistake mistakes[] = {
      {"index.token_ids[0][1][3]: expected a token from 0 to kv_len - 1 = 399, got 400",
       [](AttentionData& d) { d.token_ids[static_cast<size_t>(d.decode_problem().max_selected) + 3] = 400; }},
      {"index.token_ids[0][0][0]: expected a token from 0 to kv_len - 1 = 399, got -5",
       [](AttentionData& d) { d.token_ids[0] = -5; }},
      {"index.counts[0][1]: expected -1 (all tokens) to 400 (max_selected), got -2",
       [](AttentionData& d) { d.counts[1] = -2; }},
      {"kv.page_table[0]", [](AttentionData& d) { std::fill_n(d.page_table.data(), 10, 1 << 20); }},
      {"kv.kv_lens[0]", [](AttentionData& d) { d.lens[0] = 1 << 30; }},
  };
  for (const Mistake& mistake : mistakes) {
    AttentionCase c = base();
    c.kv_lens = {400};
    c.density = 0.5;
    c.seed = 800;
    AttentionData data(c, kSparse);
    mistake.make(data);
    DeviceDecode device(kSparse, data);
    const Expected<DecodePlan> plan = device.plan();
    ASSERT_TRUE(plan);
    device.reserve_workspace(*plan);
    device.poison_outputs();
    Status status = plan->run(device.args());
    if (status.ok()) status = plan->check(device.workspace->data());  // debug builds check in run()
    ASSERT_FALSE(status.ok()) << mistake.message;
    EXPECT_NE(status.message().find(mistake.message), std::string::npos) << status.message();
    EXPECT_TRUE(plan->check(device.workspace->data()).ok()) << "reported once";
    EXPECT_TRUE(device.guards_intact());
    // The other list, and the rest of this one, are as if the bad entry were not there: no NaN.
    const DecodeOutputs outputs = device.outputs();
    if (std::strstr(mistake.message, "kv_lens") == nullptr) {
      for (float value : outputs.out) EXPECT_FALSE(std::isnan(value)) << mistake.message;
    }
  }
}

struct Refusal {
  const char* word;
  void (*change)(DecodeArgs&);
};

TEST(CudaDecode, RefusesOnTheHostWhatCanBeKnownThere) {
  static float host[64];
  const Refusal refusals[] = {
      {"q: expected rows aligned", [](DecodeArgs& a) { a.q = static_cast<const char*>(a.q) + 2; }},
      {"out: expected rows aligned", [](DecodeArgs& a) { a.out = static_cast<char*>(a.out) + 4; }},
      {"kv.keys: expected rows aligned", [](DecodeArgs& a) { a.kv.keys = static_cast<const char*>(a.kv.keys) + 8; }},
      {"kv.token_stride", [](DecodeArgs& a) { a.kv.token_stride += 4; }},
      {"64 GiB", [](DecodeArgs& a) { a.kv.page_stride = int64_t{1} << 40; }},
      {"lse: expected memory of CUDA device 0, got host memory", [](DecodeArgs& a) { a.lse = host; }},
      {"workspace_bytes", [](DecodeArgs& a) { a.workspace_bytes /= 2; }},
      {"batch", [](DecodeArgs& a) { a.batch = 2; }},
      {"index.max_selected", [](DecodeArgs& a) { a.index.max_selected += 1; }},
      {"kv: expected the shape", [](DecodeArgs& a) { a.kv.head_dim = 64; }},
  };
  for (const Refusal& refusal : refusals) {
    AttentionCase c = base();
    AttentionData data(c, kSparse);
    DeviceDecode device(kSparse, data);
    const Expected<DecodePlan> plan = device.plan();
    ASSERT_TRUE(plan);
    device.reserve_workspace(*plan);
    DecodeArgs args = device.args();
    refusal.change(args);
    const Status status = plan->run(args);
    ASSERT_FALSE(status.ok()) << refusal.word;
    EXPECT_NE(status.message().find(refusal.word), std::string::npos) << status.message();
  }
}

}  // namespace
}  // namespace rarefy::test
