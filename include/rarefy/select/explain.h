// What a policy costs at a context length, before anything runs: tokens per part, index bytes, bytes_ratio, effective sparsity.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rarefy/select/policy.h"
#include "rarefy/select/selector.h"

namespace rarefy {

struct LayerExplanation {
  int32_t layer = 0;
  bool dense = false;
  TokenBudget budget;        // of one list; zero when dense. With eps the first one
  int32_t max_tokens = 0;    // that a list can grow to, but for those that fall back to dense attention; zero when dense
  double density = 1.0;      // tokens read / tokens cached
  double bytes_ratio = 1.0;  // (rows + index) / what dense attention reads
};

struct PolicyExplanation {
  std::string policy;  // resolved text
  int32_t kv_len = 0;
  double index_bytes_per_token = 0.0;  // per token and KV head, read in every sparse step
  double row_bytes_per_token = 0.0;    // key and value of one token and KV head
  double density = 1.0;                // mean over layers
  double bytes_ratio = 1.0;            // mean over layers
  // With eps: the mean over layers when every list is tried with the first budget and then falls back to dense attention.
  // Lists that are enlarged in several passes before that read more.
  double fallback_bytes_ratio = 0.0;                          // 0 = nothing can fall back
  double sparsity() const { return 1.0 / density; }           // tokens
  double speed_ceiling() const { return 1.0 / bytes_ratio; }  // of attention bound by memory, index counted
  std::vector<LayerExplanation> layers;                       // one for each layer that the policy applies to
};

// Refuses what policy.check() refuses, selectors that do not fit the shape, and budgets above kv_len. `layers` are the
// full-attention layers of a model that has others too; empty = all.
Expected<PolicyExplanation> explain_policy(const Policy& policy, const SelectorShape& shape, int32_t kv_len,
                                           std::vector<int32_t> layers = {});

}  // namespace rarefy
