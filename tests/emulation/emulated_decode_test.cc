// The decode kernel's source against the double-precision oracle where there is no GPU, by tests/emulation/device.h: what tests/cuda/cuda_decode_test.cc,
// some of which runs here too, cannot ask of a GPU, and small cases of what takes long. Rows that no list names are NaN in every test, and so is
// shared memory at first.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/cuda/device_decode.h"
#include "tests/emulation/device.h"

namespace rarefy::test {
namespace {

constexpr DecodeOp kDense = DecodeOp::dense, kSparse = DecodeOp::sparse;

class EmulatedDecode : public testing::Test {
 protected:
  void SetUp() override { emulation::model() = {}; }
  void TearDown() override { emulation::set_stale({}); }
};

AttentionCase base() { return {.head_dim = 128, .q_dtype = DType::bf16, .kv_dtype = DType::bf16}; }

TEST_F(EmulatedDecode, MatchesOracleForEveryTypeHeadDimAndScope) {
  for (DType q : {DType::bf16, DType::f16}) {
    for (DType kv : {q, DType::f8_e4m3}) {
      for (int32_t head_dim : {64, 128, 256}) {
        for (ListScope scope : {ListScope::kv_head, ListScope::query_head}) {
          AttentionCase c{.num_q_heads = 4, .num_kv_heads = 2, .head_dim = head_dim, .q_dtype = q, .kv_dtype = kv};
          c.kv_lens = {90, 7};
          c.scope = scope;
          c.density = 0.5;
          c.kv_scales = kv == DType::f8_e4m3;
          c.seed = 10;
          check_device_decode(kSparse, c);
          if (scope == ListScope::kv_head) check_device_decode(kDense, c);
        }
      }
    }
  }
}

TEST_F(EmulatedDecode, MatchesOracleForGroupsQueriesSoftCapAndSink) {
  for (int32_t group : {1, 6, 16}) {
    for (int32_t num_queries : {1, 3}) {
      AttentionCase c = base();
      c.num_q_heads = group;
      c.num_kv_heads = 1;
      c.num_queries = num_queries;
      c.kv_lens = {60, 0, 3};
      c.density = 0.6;
      c.logit_soft_cap = 3.0f;
      c.sink_logit = true;
      c.seed = 20;
      check_device_decode(kSparse, c);
    }
  }
}

// Capacities of one pair, two, four: blocks alone, of two warps and of four.
TEST_F(EmulatedDecode, MatchesOracleForPlansOfAFewPairs) {
  for (int32_t kv_len : {1, 16, 17, 33, 48, 100}) {
    for (int multiprocessors : {1, 3, 132}) {
      AttentionCase c = base();
      c.num_q_heads = 4;
      c.num_kv_heads = 2;
      c.kv_lens = {kv_len, kv_len - 1};
      c.all_tokens = true;
      c.seed = static_cast<uint64_t>(kv_len);
      emulation::model().multiprocessors = multiprocessors;
      check_device_decode(kSparse, c);
      check_device_decode(kDense, c);
    }
  }
}

// Few multiprocessors: blocks with several pairs for each warp, half blocks. Many: a block for each pair, clusters of up to 16.
TEST_F(EmulatedDecode, BitsDependNeitherOnTheDeviceNorOnClusters) {
  for (int32_t head_dim : {64, 128, 256}) {
    AttentionCase c = base();
    c.num_q_heads = 4;
    c.num_kv_heads = 2;
    c.head_dim = head_dim;
    c.kv_lens = {700, 130};
    c.all_tokens = true;
    c.seed = 30;
    AttentionData data(c, kSparse);
    DecodeOutputs first;
    bool with_clusters = false, without = false;
    for (int multiprocessors : {1, 4, 16, 200}) {
      for (int max_cluster : {16, 8}) {
        emulation::model().multiprocessors = multiprocessors, emulation::model().max_cluster = max_cluster;
        emulation::take_cluster_launches();
        const DecodeOutputs got = DeviceDecode(kSparse, data).run();
        (emulation::take_cluster_launches() > 0 ? with_clusters : without) = true;
        if (first.out.empty()) first = got;
        EXPECT_EQ(got, first) << head_dim << ", " << multiprocessors << " multiprocessors";
      }
    }
    EXPECT_TRUE(with_clusters && without) << head_dim;
    check_device_decode(kSparse, c, data);
  }
}

// sm_89: no clusters, and less shared memory than a block of eight warps would need. Many enough lists for four blocks each.
TEST_F(EmulatedDecode, BlocksFitADeviceOfLittleSharedMemory) {
  emulation::model() = {.compute_capability = 89, .multiprocessors = 12, .shared_bytes = 100 << 10};
  AttentionCase c = base();
  c.num_q_heads = 12;
  c.num_kv_heads = 6;
  c.kv_lens = {300};
  c.all_tokens = true;
  c.seed = 35;
  emulation::take_cluster_launches();
  check_device_decode(kSparse, c);
  EXPECT_EQ(emulation::take_cluster_launches(), 0);
}

TEST_F(EmulatedDecode, ADenseListAmongSparseOnesHasMoreBlocks) {
  AttentionCase c = base();
  c.num_q_heads = c.num_kv_heads = 6;
  c.kv_lens = {400, 170};
  c.density = 0.1;
  c.seed = 40;
  for (int dense_list : {0, 4}) {
    for (int multiprocessors : {6, 12, 24}) {
      emulation::model().multiprocessors = multiprocessors;
      c.dense_fallback = true;  // rows of every third list are there
      AttentionData data(c, kSparse);
      for (size_t list = 0; list < data.counts.size(); ++list) {
        if (data.counts[list] == kAllTokens && list % 6 != static_cast<size_t>(dense_list)) data.counts[list] = 0;
      }
      check_device_decode(kSparse, c, data);
    }
  }
}

// Whatever counts and lengths are when the kernel starts: what the kernel before writes counts.
TEST_F(EmulatedDecode, StaleCountsAndLengthsChangeNothing) {
  AttentionCase c = base();
  c.num_q_heads = c.num_kv_heads = 4;
  c.kv_lens = {200, 90};
  c.density = 0.4;
  c.seed = 50;
  for (int multiprocessors : {2, 8, 64}) {
    emulation::model().multiprocessors = multiprocessors;
    AttentionData data(c, kSparse);
    DeviceDecode device(kSparse, data);
    const Expected<DecodePlan> plan = device.plan();
    ASSERT_TRUE(plan);
    device.reserve_workspace(*plan);
    const DecodeArgs args = device.args();
    const auto run = [&] {
      device.poison_outputs();
      EXPECT_TRUE(plan->run(args).ok());
      const Status status = plan->check(args.workspace);
      EXPECT_TRUE(status.ok()) << status.to_string();
      return device.outputs();
    };
    const DecodeOutputs expected = run();
    for (int32_t guess : {-1, 0, 1, 50, 1 << 30, -7}) {
      const auto stale = [&](const int32_t* at, size_t count) {  // at [count] i32
        const std::vector<int32_t> values(count, guess);
        emulation::Stale result;
        result.at = const_cast<int32_t*>(at);
        result.contents.resize(count * sizeof(int32_t));
        std::memcpy(result.contents.data(), values.data(), result.contents.size());
        return result;
      };
      emulation::set_stale({stale(args.index.counts, data.counts.size())});
      EXPECT_EQ(run(), expected) << guess;
      emulation::set_stale({stale(args.index.counts + 1, 2), stale(args.kv.kv_lens, c.kv_lens.size())});
      EXPECT_EQ(run(), expected) << guess;
      emulation::set_stale({});
    }
  }
}

}  // namespace
}  // namespace rarefy::test
