// The implementation registry and the checks of the attention plans.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "attention/registry.h"
#include "tests/support/attention_case.h"
#include "tests/support/implementations.h"

namespace rarefy {
namespace {

using test::ForcedImplementation;

TEST(ForcedImplementationName, IsReadPerOperation) {
  const auto forced = [](const char* text, const char* op) {
    const ForcedImplementation environment(text);
    return forced_implementation(op);
  };
  unsetenv("RAREFY_FORCE_IMPL");
  EXPECT_EQ(forced_implementation("dense_decode"), "");
  EXPECT_EQ(forced("ref", "dense_decode"), "ref");
  EXPECT_EQ(forced("sparse_decode=ref,dense_decode=cpu_avx2", "dense_decode"), "cpu_avx2");
  EXPECT_EQ(forced("sparse_decode=ref", "dense_decode"), "");
  EXPECT_EQ(forced("cpu_avx3,prefill=ref", "prefill"), "ref");
  EXPECT_EQ(forced("cpu_avx3,prefill=ref", "dense_decode"), "cpu_avx3");
}

TEST(Registry, TheReferenceIsLastAndTakesEverything) {
  DecodeProblem problem;
  problem.num_q_heads = problem.num_kv_heads = 1;
  problem.head_dim = 16;
  for (DecodeOp op : {DecodeOp::dense, DecodeOp::sparse}) {
    const auto list = decode_implementations(op);
    ASSERT_GE(list.size(), 1u);
    EXPECT_EQ(list.back().name, "ref");
    EXPECT_TRUE(list.back().supports(problem, Device{}).ok());
  }
  EXPECT_EQ(prefill_implementations().back().name, "ref");
}

TEST(Registry, AForcedNameThatRefusesOrDoesNotExistIsAnError) {
  DecodeProblem problem;
  problem.num_q_heads = problem.num_kv_heads = 1;
  problem.head_dim = 64;
  const Expected<DecodePlan> unknown = test::forced_plan(DecodeOp::dense, problem, "cpu_abacus");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.status().code(), StatusCode::not_found);
  EXPECT_NE(unknown.status().message().find("cpu_abacus"), std::string::npos);
  EXPECT_NE(unknown.status().message().find("ref"), std::string::npos);

  const Implementation<int, int> refusing[] = {
      {"slow", DeviceKind::cpu, [](const int&, Device) { return Status::unsupported("too odd"); }, nullptr}};
  const auto chosen = choose<int, int>("op", Device{}, 1, refusing);
  ASSERT_FALSE(chosen);
  EXPECT_NE(chosen.status().message().find("slow refuses: too odd"), std::string::npos);
  const auto elsewhere = choose<int, int>("op", Device{DeviceKind::cuda, 0}, 1, refusing);
  ASSERT_FALSE(elsewhere);
  EXPECT_EQ(elsewhere.status().code(), StatusCode::unsupported);
}

TEST(Registry, VerboseLogsTheChoiceAndEveryRefusal) {
  std::vector<std::string> lines;
  set_log_sink([&](LogLevel, std::string_view line) { lines.emplace_back(line); });
  setenv("RAREFY_VERBOSE", "1", 1);
  const Implementation<int, int> list[] = {
      {"fast", DeviceKind::cpu, [](const int&, Device) { return Status::unsupported("not today"); }, nullptr},
      {"plain", DeviceKind::cpu, [](const int&, Device) { return Status(); }, nullptr}};
  const auto chosen = choose<int, int>("op", Device{}, 1, list);
  unsetenv("RAREFY_VERBOSE");
  set_log_sink({});
  ASSERT_TRUE(chosen);
  EXPECT_EQ((*chosen)->name, "plain");
  EXPECT_EQ(lines, std::vector<std::string>{"op: using plain; fast refuses: not today"});
}

struct BadProblem {
  const char* word;  // in the message
  void (*change)(DecodeProblem&);
};

TEST(DecodePlan, RefusesBadProblems) {
  const BadProblem bad[] = {
      {"num_q_heads", [](DecodeProblem& p) { p.num_q_heads = 3; }},
      {"num_q_heads", [](DecodeProblem& p) { p.num_q_heads = 0; }},
      {"at most 16", [](DecodeProblem& p) { p.num_q_heads = 34; }},
      {"head_dim", [](DecodeProblem& p) { p.head_dim = 24; }},
      {"head_dim", [](DecodeProblem& p) { p.head_dim = 272; }},
      {"q_dtype", [](DecodeProblem& p) { p.q_dtype = DType::i8; }},
      {"kv_dtype", [](DecodeProblem& p) { p.kv_dtype = DType::u8; }},
      {"out_dtype", [](DecodeProblem& p) { p.out_dtype = DType::i32; }},
      {"page_size", [](DecodeProblem& p) { p.page_size = 0; }},
      {"num_queries", [](DecodeProblem& p) { p.num_queries = 9; }},
      {"max_batch", [](DecodeProblem& p) { p.max_batch = 0; }},
      {"max_selected", [](DecodeProblem& p) { p.max_selected = -1; }},
      {"logit_soft_cap", [](DecodeProblem& p) { p.logit_soft_cap = -1.0f; }},
  };
  for (const BadProblem& entry : bad) {
    DecodeProblem problem;
    problem.num_q_heads = 4;
    problem.num_kv_heads = 2;
    problem.head_dim = 64;
    entry.change(problem);
    const Expected<DecodePlan> plan = DecodePlan::make(DecodeOp::sparse, Device{}, problem);
    ASSERT_FALSE(plan) << entry.word;
    EXPECT_NE(plan.status().message().find(entry.word), std::string::npos) << plan.status().message();
  }
}

struct BadArgs {
  const char* word;
  void (*change)(DecodeArgs&, test::AttentionData&);
};

TEST(DecodePlan, RefusesBadArgumentsInEveryImplementation) {
  const BadArgs bad[] = {
      {"batch", [](DecodeArgs& a, test::AttentionData&) { a.batch = 2; }},
      {"q:", [](DecodeArgs& a, test::AttentionData&) { a.q = nullptr; }},
      {"q:", [](DecodeArgs& a, test::AttentionData&) { a.q = static_cast<const char*>(a.q) + 1; }},
      {"out:", [](DecodeArgs& a, test::AttentionData&) { a.out = nullptr; }},
      {"kv: expected the shape", [](DecodeArgs& a, test::AttentionData&) { a.kv.head_dim = 32; }},
      {"kv: expected the shape", [](DecodeArgs& a, test::AttentionData&) { a.kv.dtype = DType::f16; }},
      {"kv: kv_lens[0]", [](DecodeArgs& a, test::AttentionData&) { a.kv.max_pages_per_sequence = 1; }},
      {"sink_logits", [](DecodeArgs& a, test::AttentionData&) { a.sink_logits = nullptr; }},
      {"index.num_lists", [](DecodeArgs& a, test::AttentionData&) { a.index.num_lists = 8; }},
      {"index.max_selected", [](DecodeArgs& a, test::AttentionData&) { a.index.max_selected = 1000; }},
      {"index.counts:", [](DecodeArgs& a, test::AttentionData&) { a.index.counts = nullptr; }},
      {"index.token_ids:", [](DecodeArgs& a, test::AttentionData&) { a.index.token_ids = nullptr; }},
      {"index.counts[0][1]", [](DecodeArgs&, test::AttentionData& d) { d.counts[1] = -2; }},
      {"index.counts[0][1]", [](DecodeArgs&, test::AttentionData& d) { d.counts[1] = 41; }},
      {"index.token_ids", [](DecodeArgs&, test::AttentionData& d) { d.token_ids[0] = 40; }},
      {"index.token_ids", [](DecodeArgs&, test::AttentionData& d) { d.token_ids[0] = -7; }},
  };
  for (const BadArgs& entry : bad) {
    for (const std::string& name :
         test::decode_names(DecodeOp::sparse, test::AttentionData({.kv_lens = {40}}, DecodeOp::sparse).decode_problem())) {
      test::AttentionData data({.kv_lens = {40}, .density = 0.5, .sink_logit = true}, DecodeOp::sparse);
      const Expected<DecodePlan> plan = test::forced_plan(DecodeOp::sparse, data.decode_problem(), name);
      ASSERT_TRUE(plan);
      DecodeArgs args = data.decode_args();
      args.workspace_bytes = plan->workspace_bytes();
      args.workspace = data.reserve_workspace(args.workspace_bytes);
      entry.change(args, data);
      const Status status = plan->run(args);
      ASSERT_FALSE(status.ok()) << name << ": " << entry.word;
      EXPECT_EQ(status.code(), StatusCode::invalid_argument);
      EXPECT_NE(status.message().find(entry.word), std::string::npos) << status.message();
    }
  }
}

TEST(DecodePlan, RefusesASmallOrMisalignedWorkspaceAndErrorsOfDenseAttention) {
  test::AttentionData data({.kv_lens = {40}}, DecodeOp::dense);
  const Expected<DecodePlan> plan = DecodePlan::make(DecodeOp::dense, Device{}, data.decode_problem());
  ASSERT_TRUE(plan);
  DecodeArgs args = data.decode_args();
  const size_t needed = plan->workspace_bytes();
  auto* workspace = static_cast<char*>(data.reserve_workspace(needed + 64));
  if (needed > 0) {
    args.workspace = workspace;
    args.workspace_bytes = needed - 1;
    EXPECT_NE(plan->run(args).message().find("workspace_bytes"), std::string::npos);
    args.workspace = workspace + 4;
    args.workspace_bytes = needed;
    EXPECT_NE(plan->run(args).message().find("aligned to 64"), std::string::npos);
  }
  args.workspace = workspace;
  args.workspace_bytes = needed;
  EXPECT_TRUE(plan->run(args).ok());
  args.rel_std = data.rel_std.data();
  EXPECT_NE(plan->run(args).message().find("rel_std"), std::string::npos);
}

TEST(PrefillPlan, RefusesBadProblemsAndArguments) {
  test::AttentionData data({.num_queries = 8, .kv_lens = {40}}, DecodeOp::dense);
  PrefillProblem problem = data.prefill_problem();
  problem.max_new_tokens = 0;
  EXPECT_FALSE(PrefillPlan::make(Device{}, problem));
  problem = data.prefill_problem();
  problem.head_dim = 8;
  EXPECT_FALSE(PrefillPlan::make(Device{}, problem));

  const Expected<PrefillPlan> plan = PrefillPlan::make(Device{}, data.prefill_problem());
  ASSERT_TRUE(plan);
  PrefillArgs args = data.prefill_args();
  args.workspace_bytes = plan->workspace_bytes();
  args.workspace = data.reserve_workspace(args.workspace_bytes);
  EXPECT_TRUE(plan->run(args).ok());
  args.num_new = 9;
  EXPECT_NE(plan->run(args).message().find("num_new"), std::string::npos);
  args.num_new = 0;
  EXPECT_NE(plan->run(args).message().find("num_new"), std::string::npos);
  args.num_new = 8;
  data.lens[0] = 7;
  EXPECT_NE(plan->run(args).message().find("kv_lens[0]"), std::string::npos);
  data.lens[0] = 40;
  args.out = nullptr;
  EXPECT_NE(plan->run(args).message().find("out"), std::string::npos);
}

}  // namespace
}  // namespace rarefy
