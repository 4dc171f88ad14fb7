// Policy: how many tokens a decode step attends to and how they are chosen: sink + local + what a spending rule takes by a
// selector's scores. One text form, used by the CLI, the C ABI, files and reports:
//
//   dense                                                      (no policy)
//   50x                                                        the default recipe at that sparsity
//   total=0.02 sink=4 local=32 index=sign64 spend=priority
//   total=400 index=quest16:int8 spend=half min=1024 dense_layers=0,1 total@2-3=0.05
//   total=0.02 index=q2 spend=priority eps=0.1 delta=0.05 max=0.1
//
// `total` counts all tokens of a list, sink and local included: a fraction of the cached tokens when written with a point or
// as a percentage, a number of tokens otherwise. Below `min` cached tokens, and where the budget covers everything, a step is
// dense. With `eps` the total is the first budget of a list: one whose certificate does not reach eps gets more, up to `max`, or
// dense attention (docs/certificate.md). to_string() gives the resolved text, in which every default is written out; it parses back to the same policy.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "rarefy/core/status.h"

namespace rarefy {

enum class Spend : int32_t {
  priority = 0,    // priority sampling on estimated weights (Duffield, Lund and Thorup, J. ACM 54(6), 2007)
  top_k = 1,       // the best scores, nothing else: truncation
  half = 2,        // half of the budget as top-k, the rest by priority sampling
  uniform = 3,     // half of the budget as top-k, the rest a uniform tail with weight 1 / inclusion probability
  top_p = 4,       // the best scores until they hold a share p of the estimated probability; the budget is a cap
  systematic = 5,  // half of the budget as top-k, the rest every (n / b)-th token from a random one on
  gumbel = 6,      // Gumbel top-k on estimated weights
  vattention = 7,  // top-k and a uniform tail whose size follows from a first sample (arXiv 2510.05688); wants eps
};

// Where the promise eps= comes from.
enum class Certify : int32_t {
  estimated = 0,  // the certificate of the sampling: at most a share delta of violations, if scores are not far too low
  bounded = 1,    // the index bounds the error of its scores: no violation at all
};

std::string_view to_string(Spend spend);
// Whether tokens are drawn at random: the others have no certificate.
bool is_sampled(Spend spend);

// A number of tokens, or a fraction of the cached tokens.
struct Budget {
  bool is_fraction = true;
  double value = 1.0;
  int32_t tokens(int32_t kv_len) const;  // rounded to the nearest token, 1 .. kv_len
  friend bool operator==(const Budget&, const Budget&) = default;
};

// Deviations of some layers.
struct LayerOverride {
  int32_t first_layer = 0;
  int32_t last_layer = 0;  // inclusive
  bool dense = false;
  Budget total;  // unless dense
  friend bool operator==(const LayerOverride&, const LayerOverride&) = default;
};

struct Policy {
  bool dense = true;  // everything below is ignored
  Budget total;
  int32_t sink = 4;
  int32_t local = 32;
  std::string index;  // selector text, select/registry.h
  Spend spend = Spend::priority;
  double floor =
      0.0;  // m: a share of the estimated probability spread evenly over all tokens, against scores that are far too low
  int32_t min_kv_len = 512;
  double top_p = 0.9;  // with Spend::top_p
  double eps = 0.0;    // promised |out - dense| / |dense|; 0 = nothing is promised
  // With eps only:
  double delta = 0.05;  // share of (step, head) pairs that may err by more
  Budget max{true, 0.25};
  Certify certify = Certify::estimated;
  std::vector<LayerOverride> overrides;  // dense ones win, then later ones

  static Expected<Policy> parse(std::string_view text);
  std::string to_string() const;

  bool layer_is_dense(int32_t layer, int32_t kv_len) const;
  // Tokens of one list, sink and local included. Pre: !layer_is_dense(layer, kv_len).
  int32_t total_tokens(int32_t layer, int32_t kv_len) const;
  // The most tokens that one list can come to hold, but for lists that fall back to dense attention.
  int32_t max_tokens(int32_t layer, int32_t kv_len) const;
  // Refuses what a model cannot satisfy: layers that do not exist, unknown selectors, a budget above the context.
  Status check(int32_t num_layers) const;

  friend bool operator==(const Policy&, const Policy&) = default;
};

// Tokens of one list by part. sink + local take at most a quarter of the total.
struct TokenBudget {
  int32_t total = 0, sink = 0, local = 0, selected = 0;
};
TokenBudget split_budget(const Policy& policy, int32_t layer, int32_t kv_len);

}  // namespace rarefy
