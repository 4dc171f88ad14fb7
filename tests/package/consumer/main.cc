// Uses an installed Rarefy as a stranger would: a policy and a decode plan, which pull in most of the library.
#include <cstdio>

#include "rarefy/attention/decode.h"
#include "rarefy/select/policy.h"

int main() {
  const auto policy = rarefy::Policy::parse("50x");
  if (!policy) {
    std::fprintf(stderr, "%s\n", policy.status().to_string().c_str());
    return 1;
  }
  const rarefy::DecodeProblem problem{.num_q_heads = 8, .num_kv_heads = 2, .head_dim = 64};
  const auto plan = rarefy::DecodePlan::make(rarefy::DecodeOp::dense, {}, problem);
  if (!plan) {
    std::fprintf(stderr, "%s\n", plan.status().to_string().c_str());
    return 1;
  }
  std::printf("policy: %s\nimplementation: %s\n", policy->to_string().c_str(), std::string(plan->implementation()).c_str());
  return 0;
}
