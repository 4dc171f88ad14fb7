// Causal prefill: every implementation against the double-precision oracle, chunked against whole, prefill against decode.
#include <gtest/gtest.h>

#include <cstring>

#include "rarefy/core/device.h"
#include "tests/support/attention_case.h"
#include "tests/support/decode_runs.h"

namespace rarefy::test {
namespace {

constexpr DType kKvDtypes[] = {DType::f32, DType::f16, DType::bf16};

// One sequence: num_queries is the number of new tokens.
DecodeOutputs run_prefill(const std::string& name, AttentionData& data) {
  DecodeOutputs outputs;
  Expected<PrefillPlan> plan = forced_plan(data.prefill_problem(), name);
  EXPECT_TRUE(plan) << plan.status().to_string();
  if (!plan) return outputs;
  EXPECT_EQ(plan->implementation(), name);
  PrefillArgs args = data.prefill_args();
  args.workspace_bytes = plan->workspace_bytes();
  args.workspace = data.reserve_workspace(args.workspace_bytes);
  data.poison_outputs();
  const Status status = plan->run(args);
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_TRUE(data.guards_intact());
  outputs.out = data.out_values();
  outputs.lse.assign(data.lse.data(), data.lse.data() + data.lse.size());
  return outputs;
}

void check_prefill(const AttentionCase& description) {
  SCOPED_TRACE(description.to_string());
  AttentionData data(description, DecodeOp::dense);
  const PrefillProblem problem = data.prefill_problem();
  std::vector<std::pair<std::string, DecodeOutputs>> runs;
  for (const std::string& name : prefill_names(problem)) runs.emplace_back(name, run_prefill(name, data));
  const ref::AttentionResult expected = ref::prefill_attention(problem, data.prefill_args());
  for (const auto& [name, outputs] : runs) {
    EXPECT_TRUE(matches_oracle({outputs.out, outputs.lse.data(), nullptr, nullptr}, expected, problem.head_dim,
                               problem.out_dtype, description.kv_lens[0], weight_rounding(name)))
        << name;
  }
}

TEST(Prefill, MatchesOracleForEveryDtypeAndHeadDim) {
  uint64_t seed = 1;
  for (DType kv_dtype : kKvDtypes) {
    for (int32_t head_dim : {16, 32, 48, 64, 80, 96, 112, 128, 160, 256}) {
      check_prefill({.num_q_heads = 4,
                     .head_dim = head_dim,
                     .kv_dtype = kv_dtype,
                     .num_queries = 33,
                     .kv_lens = {100},
                     .seed = seed++});
    }
  }
}

TEST(Prefill, MatchesOracleForEveryQueryAndOutputDtype) {
  for (DType q_dtype : kKvDtypes) {
    for (DType out_dtype : kKvDtypes) {
      check_prefill({.q_dtype = q_dtype, .out_dtype = out_dtype, .num_queries = 20, .kv_lens = {65}, .seed = 50});
    }
  }
}

TEST(Prefill, MatchesOracleForEveryGroup) {
  for (int32_t group = 1; group <= 16; ++group) {
    check_prefill({.num_q_heads = 2 * group,
                   .num_kv_heads = 2,
                   .num_queries = 40,
                   .kv_lens = {70},
                   .seed = 100u + static_cast<uint64_t>(group)});
  }
}

TEST(Prefill, MatchesOracleAtAwkwardLengths) {
  uint64_t seed = 200;
  for (int32_t page_size : {1, 16, 256}) {
    for (int32_t kv_len : {1, 2, 63, 64, 65, 127, 128, 129, 400}) {
      for (int32_t num_new : {1, 7, 64, 129, kv_len}) {
        if (num_new > kv_len) continue;
        check_prefill({.num_q_heads = 3,
                       .num_kv_heads = 1,
                       .page_size = page_size,
                       .num_queries = num_new,
                       .kv_lens = {kv_len},
                       .seed = seed++});
      }
    }
  }
}

TEST(Prefill, MatchesOracleForEveryLayoutAndSoftCap) {
  for (KvLayout layout : {KvLayout::nhd, KvLayout::hnd, KvLayout::head_major}) {
    for (float soft_cap : {0.0f, 3.0f}) {
      check_prefill({.num_q_heads = 12,
                     .num_kv_heads = 3,
                     .num_queries = 90,
                     .kv_lens = {200},
                     .layout = layout,
                     .logit_soft_cap = soft_cap,
                     .seed = 300});
    }
  }
}

TEST(Prefill, MatchesOracleForEveryWindow) {
  uint64_t seed = 400;
  for (int32_t page_size : {1, 16, 64}) {
    for (int32_t window : {1, 2, 63, 64, 65, 200, 1000}) {
      for (int32_t num_new : {1, 70, 300}) {
        check_prefill({.num_q_heads = 3,
                       .num_kv_heads = 1,
                       .page_size = page_size,
                       .num_queries = num_new,
                       .kv_lens = {300},
                       .logit_soft_cap = window == 65 ? 3.0f : 0.0f,
                       .sliding_window = window,
                       .seed = seed++});
      }
    }
  }
}

TEST(Prefill, MatchesOracleForExtremeLogits) {
  for (float spread : {0.0f, 20.0f, 200.0f}) {
    check_prefill({.num_queries = 100, .kv_lens = {300}, .logit_spread = spread, .seed = 500});
  }
}

TEST(Prefill, ThreadsDoNotChangeABit) {
  AttentionData data({.num_queries = 300, .kv_lens = {400}, .seed = 600}, DecodeOp::dense);
  for (const std::string& name : prefill_names(data.prefill_problem())) {
    if (name == "ref") continue;  // one thread only
    set_num_threads(1);
    const DecodeOutputs first = run_prefill(name, data);
    for (int32_t threads : {1, 2, 3, 7}) {
      set_num_threads(threads);
      EXPECT_EQ(first, run_prefill(name, data)) << name << " threads=" << threads;
    }
    set_num_threads(0);
  }
}

void check_chunks(int32_t window) {
  const AttentionCase whole = {.num_queries = 300, .kv_lens = {300}, .sliding_window = window, .seed = 700};
  AttentionData data(whole, DecodeOp::dense);
  for (const std::string& name : prefill_names(data.prefill_problem())) {
    if (name == "ref") continue;  // row by row as it is
    const DecodeOutputs expected = run_prefill(name, data);
    for (int32_t chunk : {11, 37, 128}) {
      for (int32_t first = 0; first < 300; first += chunk) {
        const int32_t count = std::min(chunk, 300 - first);
        AttentionCase part = whole;
        part.num_queries = count;
        part.kv_lens = {first + count};
        AttentionData part_data(part, DecodeOp::dense);
        const size_t row_bytes = size_t{8} * 64 * sizeof(float);
        std::memcpy(part_data.q.data(), data.q.data() + static_cast<size_t>(first) * row_bytes,
                    static_cast<size_t>(count) * row_bytes);
        const DecodeOutputs got = run_prefill(name, part_data);
        ASSERT_TRUE(std::equal(got.out.begin(), got.out.end(), expected.out.begin() + first * 8 * 64))
            << name << " chunk=" << chunk << " first=" << first;
        ASSERT_TRUE(std::equal(got.lse.begin(), got.lse.end(), expected.lse.begin() + first * 8)) << name;
      }
    }
  }
}

TEST(Prefill, ChunksDoNotChangeABit) { check_chunks(0); }
TEST(Prefill, ChunksWithAWindowDoNotChangeABit) { check_chunks(50); }

}  // namespace
}  // namespace rarefy::test
