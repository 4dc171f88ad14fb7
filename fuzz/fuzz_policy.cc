// Any text as a policy: no crash; what is accepted reads back from its resolved text and gives sane budgets.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>

#include "rarefy/select/policy.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void check_budget(const rarefy::Policy& policy, int32_t layer, int32_t kv_len) {
  if (policy.layer_is_dense(layer, kv_len)) return;
  const rarefy::TokenBudget budget = rarefy::split_budget(policy, layer, kv_len);
  require(budget.total >= 1 && budget.total < kv_len);
  require(budget.total == policy.total_tokens(layer, kv_len));
  require(budget.sink >= 0 && budget.local >= 0 && budget.sink + budget.local <= budget.total / 4);
  require(budget.selected == budget.total - budget.sink - budget.local);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto policy = rarefy::Policy::parse(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!policy) {
    require(!policy.status().message().empty());
    return 0;
  }
  const std::string resolved = policy->to_string();
  const auto again = rarefy::Policy::parse(resolved);
  require(again.has_value() && *again == *policy && again->to_string() == resolved);
  (void)policy->check(4).ok();
  for (const int32_t kv_len : {1, 2, 511, 512, 16384, 1000003, std::numeric_limits<int32_t>::max()}) {
    for (const int32_t layer : {0, 1, 7}) check_budget(*policy, layer, kv_len);
  }
  return 0;
}
