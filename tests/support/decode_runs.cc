#include "tests/support/decode_runs.h"

#include <algorithm>

namespace rarefy::test {

DecodeOutputs run_decode(DecodeOp op, const std::string& name, AttentionData& data) {
  DecodeOutputs outputs;
  Expected<DecodePlan> plan = forced_plan(op, data.decode_problem(), name);
  EXPECT_TRUE(plan) << plan.status().to_string();
  if (!plan) return outputs;
  EXPECT_EQ(plan->implementation(), name);
  DecodeArgs args = data.decode_args();
  args.workspace_bytes = plan->workspace_bytes();
  args.workspace = data.reserve_workspace(args.workspace_bytes);
  data.poison_outputs();
  const Status status = plan->run(args);
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_TRUE(data.guards_intact());
  const auto copy = [&](const GuardedBuffer<float>& from) {
    return std::vector<float>(from.data(), from.data() + from.size());
  };
  outputs.out = data.out_values();
  outputs.lse = copy(data.lse);
  if (op == DecodeOp::sparse) {
    outputs.rel_std = copy(data.rel_std);
    outputs.out_rel_std = copy(data.out_rel_std);
  }
  return outputs;
}

void check_decode(DecodeOp op, const AttentionCase& description) {
  SCOPED_TRACE(description.to_string());
  AttentionData data(description, op);
  const DecodeProblem problem = data.decode_problem();
  std::vector<std::pair<std::string, DecodeOutputs>> runs;  // candidates first, the oracle after them
  for (const std::string& name : decode_names(op, problem)) runs.emplace_back(name, run_decode(op, name, data));
  const ref::AttentionResult expected = ref::decode_attention(op, problem, data.decode_args());
  const int32_t longest = *std::max_element(description.kv_lens.begin(), description.kv_lens.end());
  for (const auto& [name, outputs] : runs) {
    Got got{outputs.out, outputs.lse.data(), nullptr, nullptr};
    if (op == DecodeOp::sparse) {
      got.rel_std = outputs.rel_std.data();
      got.out_rel_std = outputs.out_rel_std.data();
    }
    EXPECT_TRUE(matches_oracle(got, expected, problem.head_dim, problem.out_dtype, longest, weight_rounding(name))) << name;
  }
}

}  // namespace rarefy::test
