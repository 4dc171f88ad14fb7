// What a policy reads in one decode step at a context length, layer by layer, computed without running anything.
#pragma once

#include <vector>

#include "rarefy/select/policy.h"
#include "rarefy/select/selector.h"

namespace rarefy::cli {

struct LayerCost {
  bool dense = false;
  TokenBudget tokens;  // of one list; dense layers read all
  double index_bytes = 0.0;  // of one list
};

struct PolicyCost {
  std::vector<LayerCost> layers;  // [num_layers]
  double row_bytes = 0.0;         // of a step: keys and values read
  double index_bytes = 0.0;       // of a step
  double dense_bytes = 0.0;       // what dense attention reads in a step
  double tokens_read = 0.0, tokens_cached = 0.0;  // over all lists

  double density() const { return tokens_cached > 0.0 ? tokens_read / tokens_cached : 1.0; }
  double bytes_ratio() const { return dense_bytes > 0.0 ? (row_bytes + index_bytes) / dense_bytes : 1.0; }
};

Expected<PolicyCost> policy_cost(const Policy& policy, const SelectorShape& shape, int32_t kv_len);

}  // namespace rarefy::cli
