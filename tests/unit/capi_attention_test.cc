// Attention through the C interface: the same bits as the C++ plans, the oracle's values, and what is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "rarefy/attention/merge.h"
#include "rarefy/rarefy.h"
#include "tests/support/decode_runs.h"

namespace rarefy::test {
namespace {

int32_t c_dtype(DType dtype) {
  switch (dtype) {
    case DType::f32: return RAREFY_DTYPE_F32;
    case DType::f16: return RAREFY_DTYPE_F16;
    case DType::bf16: return RAREFY_DTYPE_BF16;
    case DType::f8_e4m3: return RAREFY_DTYPE_F8_E4M3;
    default: return -1;
  }
}

// A C++ case as the structs of rarefy.h. Pointers among them stay valid as long as it does; not copied.
struct CCase {
  CCase(AttentionData& data, DecodeOp op) {
    const DecodeProblem from = data.decode_problem();
    problem.struct_size = sizeof(problem);
    problem.op = op == DecodeOp::sparse ? RAREFY_DECODE_SPARSE : RAREFY_DECODE_DENSE;
    problem.num_q_heads = from.num_q_heads;
    problem.num_kv_heads = from.num_kv_heads;
    problem.head_dim = from.head_dim;
    problem.q_dtype = c_dtype(from.q_dtype);
    problem.kv_dtype = c_dtype(from.kv_dtype);
    problem.out_dtype = c_dtype(from.out_dtype);
    problem.page_size = from.page_size;
    problem.num_queries = from.num_queries;
    problem.scope = from.scope == ListScope::query_head ? RAREFY_LISTS_PER_QUERY_HEAD : RAREFY_LISTS_PER_KV_HEAD;
    problem.logit_soft_cap = from.logit_soft_cap;
    problem.sink_logit = from.sink_logit ? 1 : 0;
    problem.max_batch = from.max_batch;
    problem.max_selected = from.max_selected;
    problem.max_kv_len = from.max_kv_len;

    const DecodeArgs run = data.decode_args();
    kv.struct_size = sizeof(kv);
    kv.keys = run.kv.keys, kv.values = run.kv.values;
    kv.page_stride = run.kv.page_stride, kv.token_stride = run.kv.token_stride, kv.head_stride = run.kv.head_stride;
    kv.num_pages = run.kv.num_pages, kv.max_pages_per_sequence = run.kv.max_pages_per_sequence;
    kv.page_table = run.kv.page_table, kv.kv_lens = run.kv.kv_lens;
    kv.key_scales = run.kv.key_scales, kv.value_scales = run.kv.value_scales;
    index.struct_size = sizeof(index);
    index.max_selected = run.index.max_selected;
    index.token_ids = run.index.token_ids, index.counts = run.index.counts, index.log_weight = run.index.log_weight;
    args.struct_size = sizeof(args);
    args.batch = run.batch, args.scale = run.scale, args.q = run.q;
    args.kv = &kv;
    args.index = op == DecodeOp::sparse ? &index : nullptr;
    args.sink_logits = run.sink_logits;
    args.out = run.out, args.lse = run.lse, args.rel_std = run.rel_std, args.out_rel_std = run.out_rel_std;
  }
  CCase(const CCase&) = delete;
  CCase& operator=(const CCase&) = delete;

  rarefy_decode_problem problem{};
  rarefy_paged_kv kv{};
  rarefy_index_set index{};
  rarefy_decode_args args{};
};

struct PlanFree {
  void operator()(rarefy_decode_plan* plan) const { rarefy_decode_plan_free(plan); }
  void operator()(rarefy_merge_plan* plan) const { rarefy_merge_plan_free(plan); }
};
using DecodePlanPtr = std::unique_ptr<rarefy_decode_plan, PlanFree>;
using MergePlanPtr = std::unique_ptr<rarefy_merge_plan, PlanFree>;

DecodePlanPtr make_plan(const rarefy_decode_problem& problem) {
  rarefy_decode_plan* plan = nullptr;
  EXPECT_EQ(rarefy_decode_plan_create(&problem, &plan), RAREFY_OK) << rarefy_last_error();
  return DecodePlanPtr(plan);
}

void check_through_c(DecodeOp op, const AttentionCase& description) {
  SCOPED_TRACE(description.to_string());
  AttentionData data(description, op);
  CCase c(data, op);
  const DecodePlanPtr plan = make_plan(c.problem);
  ASSERT_NE(plan, nullptr);
  const std::string name = rarefy_decode_plan_implementation(plan.get());
  const DecodeOutputs expected = run_decode(op, name, data);

  size_t bytes = 0;
  ASSERT_EQ(rarefy_decode_plan_workspace_bytes(plan.get(), &bytes), RAREFY_OK);
  c.args.workspace = data.reserve_workspace(bytes);
  c.args.workspace_bytes = bytes;
  ASSERT_EQ(rarefy_decode_plan_prepare_workspace(plan.get(), c.args.workspace, bytes, nullptr), RAREFY_OK);
  data.poison_outputs();
  ASSERT_EQ(rarefy_decode_plan_run(plan.get(), &c.args, nullptr), RAREFY_OK) << rarefy_last_error();
  EXPECT_EQ(rarefy_decode_plan_check(plan.get(), c.args.workspace, nullptr), RAREFY_OK) << rarefy_last_error();
  EXPECT_TRUE(data.guards_intact());
  EXPECT_EQ(data.out_values(), expected.out);
  const ref::AttentionResult oracle = ref::decode_attention(op, data.decode_problem(), data.decode_args());
  const int32_t longest = *std::max_element(description.kv_lens.begin(), description.kv_lens.end());
  const bool sparse = op == DecodeOp::sparse;
  EXPECT_TRUE(matches_oracle({data.out_values(), data.lse.data(), sparse ? data.rel_std.data() : nullptr,
                              sparse ? data.out_rel_std.data() : nullptr},
                             oracle, description.head_dim, description.out_dtype, longest, weight_rounding(name)));
}

TEST(CapiAttention, EveryDtypeScopeAndOptionMatchesTheOracle) {
  uint64_t seed = 1;
  for (DecodeOp op : {DecodeOp::dense, DecodeOp::sparse}) {
    for (DType kv_dtype : {DType::f32, DType::f16, DType::bf16, DType::f8_e4m3}) {
      check_through_c(op, {.kv_dtype = kv_dtype, .kv_lens = {333, 40}, .seed = seed++});
    }
    for (DType dtype : {DType::f16, DType::bf16}) {
      check_through_c(op, {.q_dtype = dtype, .out_dtype = dtype, .kv_lens = {100}, .seed = seed++});
    }
    check_through_c(op, {.num_q_heads = 12,
                         .num_kv_heads = 3,
                         .head_dim = 80,
                         .page_size = 8,
                         .num_queries = 3,
                         .kv_lens = {200, 5, 33},
                         .layout = KvLayout::hnd,
                         .scope = ListScope::query_head,
                         .dense_fallback = true,
                         .logit_soft_cap = 3.0f,
                         .sink_logit = true,
                         .seed = seed++});
  }
}

// What is left 0 is the default: f32 queries and outputs, a bf16 cache, pages of 16, contiguous strides, scale 1/sqrt(head_dim).
TEST(CapiAttention, ZeroMeansTheDefault) {
  AttentionCase description = {.kv_lens = {100}, .logit_spread = 1.0f, .seed = 40};  // scale = 1 / sqrt(head_dim)
  AttentionData data(description, DecodeOp::dense);
  CCase c(data, DecodeOp::dense);
  const DecodeOutputs expected =
      run_decode(DecodeOp::dense, rarefy_decode_plan_implementation(make_plan(c.problem).get()), data);
  rarefy_decode_problem problem{};
  problem.struct_size = sizeof(problem);
  problem.num_q_heads = description.num_q_heads;
  problem.num_kv_heads = description.num_kv_heads;
  problem.head_dim = description.head_dim;
  const DecodePlanPtr plan = make_plan(problem);
  size_t bytes = 0;
  ASSERT_EQ(rarefy_decode_plan_workspace_bytes(plan.get(), &bytes), RAREFY_OK);
  c.kv.page_stride = c.kv.token_stride = c.kv.head_stride = 0;
  c.args.batch = 0;
  c.args.scale = 0.0f;
  c.args.workspace = data.reserve_workspace(bytes);
  c.args.workspace_bytes = bytes;
  data.poison_outputs();
  ASSERT_EQ(rarefy_decode_plan_run(plan.get(), &c.args, nullptr), RAREFY_OK) << rarefy_last_error();
  EXPECT_EQ(data.out_values(), expected.out);
}

TEST(CapiAttention, NullWrongSizesAndWrongEnumsAreErrors) {
  AttentionData data({.kv_lens = {50}, .seed = 50}, DecodeOp::sparse);
  CCase c(data, DecodeOp::sparse);
  const DecodePlanPtr plan = make_plan(c.problem);
  size_t bytes = 0;
  ASSERT_EQ(rarefy_decode_plan_workspace_bytes(plan.get(), &bytes), RAREFY_OK);
  c.args.workspace = data.reserve_workspace(bytes);
  c.args.workspace_bytes = bytes;
  const auto refused = [&](const char* needle) {
    EXPECT_EQ(rarefy_decode_plan_run(plan.get(), &c.args, nullptr), RAREFY_INVALID_ARGUMENT) << needle;
    EXPECT_NE(std::string(rarefy_last_error()).find(needle), std::string::npos) << rarefy_last_error();
  };
  ASSERT_EQ(rarefy_decode_plan_run(plan.get(), &c.args, nullptr), RAREFY_OK) << rarefy_last_error();
  c.args.struct_size = 8, refused("rarefy_decode_args"), c.args.struct_size = sizeof(c.args);
  c.kv.struct_size = 8, refused("rarefy_paged_kv"), c.kv.struct_size = sizeof(c.kv);
  c.index.struct_size = 8, refused("rarefy_index_set"), c.index.struct_size = sizeof(c.index);
  c.args.kv = nullptr, refused("a KV cache"), c.args.kv = &c.kv;
  c.args.index = nullptr, refused("an index set"), c.args.index = &c.index;
  c.args.q = nullptr, refused("q"), c.args.q = data.q.data();
  c.args.batch = 2, refused("max_batch"), c.args.batch = 1;
  data.counts[0] += 1000, refused("counts"), data.counts[0] -= 1000;
  if (bytes > 0) c.args.workspace_bytes = bytes - 1, refused("workspace"), c.args.workspace_bytes = bytes;
  ASSERT_EQ(rarefy_decode_plan_run(plan.get(), &c.args, nullptr), RAREFY_OK) << rarefy_last_error();

  EXPECT_EQ(rarefy_decode_plan_run(nullptr, &c.args, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_decode_plan_run(plan.get(), nullptr, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_decode_plan_workspace_bytes(plan.get(), nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_decode_plan_prepare_workspace(nullptr, c.args.workspace, bytes, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_decode_plan_check(nullptr, c.args.workspace, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_STREQ(rarefy_decode_plan_implementation(nullptr), "");
  rarefy_decode_plan_free(nullptr);

  rarefy_decode_plan* made = nullptr;
  const auto no_plan = [&](auto change, rarefy_status status, const char* needle) {
    rarefy_decode_problem problem = c.problem;
    change(problem);
    EXPECT_EQ(rarefy_decode_plan_create(&problem, &made), status) << needle;
    EXPECT_NE(std::string(rarefy_last_error()).find(needle), std::string::npos) << rarefy_last_error();
    EXPECT_EQ(made, nullptr);
  };
  no_plan([](auto& p) { p.struct_size = 4; }, RAREFY_INVALID_ARGUMENT, "rarefy_decode_problem");
  no_plan([](auto& p) { p.op = 2; }, RAREFY_INVALID_ARGUMENT, "rarefy_decode_op");
  no_plan([](auto& p) { p.scope = -1; }, RAREFY_INVALID_ARGUMENT, "rarefy_list_scope");
  no_plan([](auto& p) { p.q_dtype = 9; }, RAREFY_INVALID_ARGUMENT, "q_dtype");
  no_plan([](auto& p) { p.kv_dtype = -1; }, RAREFY_INVALID_ARGUMENT, "kv_dtype");
  no_plan([](auto& p) { p.out_dtype = 9; }, RAREFY_INVALID_ARGUMENT, "out_dtype");
  no_plan([](auto& p) { p.device_kind = 7; }, RAREFY_INVALID_ARGUMENT, "rarefy_device_kind");
  no_plan([](auto& p) { p.num_queries = 9; }, RAREFY_UNSUPPORTED, "num_queries");
  EXPECT_EQ(rarefy_decode_plan_create(nullptr, &made), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_decode_plan_create(&c.problem, nullptr), RAREFY_INVALID_ARGUMENT);
}

// Sets made elsewhere: an id outside the sequence is an error, not a read.
TEST(CapiAttention, IdsOutsideTheSequenceAreErrors) {
  AttentionData data({.kv_lens = {50}, .seed = 61}, DecodeOp::sparse);
  CCase c(data, DecodeOp::sparse);
  const DecodePlanPtr plan = make_plan(c.problem);
  size_t bytes = 0;
  ASSERT_EQ(rarefy_decode_plan_workspace_bytes(plan.get(), &bytes), RAREFY_OK);
  c.args.workspace = data.reserve_workspace(bytes);
  c.args.workspace_bytes = bytes;
  ASSERT_GT(data.counts[0], 0);
  int32_t& last = data.token_ids[static_cast<size_t>(data.counts[0]) - 1];
  const int32_t good = last;
  for (const int32_t bad : {50, -1, 1 << 30, INT32_MIN}) {
    last = bad;
    EXPECT_EQ(rarefy_decode_plan_run(plan.get(), &c.args, nullptr), RAREFY_INVALID_ARGUMENT) << bad;
    EXPECT_NE(std::string(rarefy_last_error()).find("token_ids"), std::string::npos) << rarefy_last_error();
  }
  last = good;
  EXPECT_EQ(rarefy_decode_plan_run(plan.get(), &c.args, nullptr), RAREFY_OK) << rarefy_last_error();
}

TEST(CapiAttention, DenseRefusesAnIndexSet) {
  AttentionData data({.kv_lens = {50}, .seed = 60}, DecodeOp::dense);
  CCase c(data, DecodeOp::dense);
  const DecodePlanPtr plan = make_plan(c.problem);
  c.args.index = &c.index;
  EXPECT_EQ(rarefy_decode_plan_run(plan.get(), &c.args, nullptr), RAREFY_INVALID_ARGUMENT);
}

TEST(CapiAttention, MergeEqualsTheCppPlan) {
  constexpr int32_t kParts = 3, kDim = 24;
  constexpr int64_t kRows = 5;
  std::vector<float> part_out(kParts * kRows * kDim),
      part_lse(kParts * kRows);  // [parts, rows, dim] f32, [parts, rows] f32
  RandomStream random(70);
  for (float& value : part_out) value = static_cast<float>(random.normal());
  for (float& value : part_lse) value = static_cast<float>(random.normal());
  part_lse[3] = -std::numeric_limits<float>::infinity();
  std::vector<float> out(kRows * kDim), lse(kRows), expected_out = out, expected_lse = lse;  // [rows, dim] f32, [rows] f32
  const Expected<MergePlan> reference = MergePlan::make({}, {.head_dim = kDim});
  ASSERT_TRUE(reference);
  ASSERT_TRUE(reference
                  ->run({.num_parts = kParts,
                         .num_rows = kRows,
                         .part_out = part_out.data(),
                         .part_lse = part_lse.data(),
                         .out = expected_out.data(),
                         .lse = expected_lse.data()})
                  .ok());

  rarefy_merge_problem problem{};
  problem.struct_size = sizeof(problem);
  problem.head_dim = kDim;
  rarefy_merge_plan* made = nullptr;
  ASSERT_EQ(rarefy_merge_plan_create(&problem, &made), RAREFY_OK) << rarefy_last_error();
  const MergePlanPtr plan(made);
  EXPECT_EQ(rarefy_merge_plan_implementation(plan.get()), std::string(reference->implementation()));
  rarefy_merge_args args{};
  args.struct_size = sizeof(args);
  args.num_parts = kParts, args.num_rows = kRows;
  args.part_out = part_out.data(), args.part_lse = part_lse.data();
  args.out = out.data(), args.lse = lse.data();
  ASSERT_EQ(rarefy_merge_plan_run(plan.get(), &args, nullptr), RAREFY_OK) << rarefy_last_error();
  EXPECT_EQ(out, expected_out);
  EXPECT_EQ(lse, expected_lse);

  args.num_parts = 0;
  EXPECT_EQ(rarefy_merge_plan_run(plan.get(), &args, nullptr), RAREFY_INVALID_ARGUMENT);
  args.struct_size = 1;
  EXPECT_EQ(rarefy_merge_plan_run(plan.get(), &args, nullptr), RAREFY_INVALID_ARGUMENT);
  EXPECT_EQ(rarefy_merge_plan_run(nullptr, &args, nullptr), RAREFY_INVALID_ARGUMENT);
  problem.head_dim = 257;
  made = nullptr;
  EXPECT_EQ(rarefy_merge_plan_create(&problem, &made), RAREFY_UNSUPPORTED);
  EXPECT_EQ(made, nullptr);
  EXPECT_STREQ(rarefy_merge_plan_implementation(nullptr), "");
  rarefy_merge_plan_free(nullptr);
}

}  // namespace
}  // namespace rarefy::test
