// Spending rules: which of the ranked tokens a budget buys, and with which weights (Policy::spend).
//
//   priority  key_i = a_i - ln u_i; the `budget` largest keys; tau is the next one; log_weight_i = max(0, tau - a_i)
//   top_k     the `budget` largest a_i; weights 0
//   half      (budget + 1) / 2 as top_k, the rest by priority among the remaining tokens
//   uniform   (budget + 1) / 2 as top_k; b = the rest, with the b smallest u among the n remaining tokens; log_weight ln(n / b)
//   top_p     the largest a_i until they hold more than p of sum exp(a_i), the one that crosses included; at most `budget`
//   systematic  (budget + 1) / 2 as top_k; b = the rest; of all n tokens numbers floor((r + j n) / b), j = 0 .. b - 1, r uniform in
//             0 .. n - 1, but for those that top_k took: log_weight ln(n / b). Fewer than `budget` tokens, by the hits left out
//   gumbel    key_i = a_i - ln(-ln(1 - u_i)); the `budget` largest keys; kappa is the next one;
//             log_weight_i = -ln(1 - exp(-exp(a_i - kappa)))
//   vattention  num_heavy as top_k, the rest as in uniform
//
// Ties go to the lower token id. A budget that covers every token takes them all with weight 0.
//
// The rules work on candidates: tokens that passed thresholds guessed from a sample. A guess never changes the result:
// spend() reports when the candidates do not settle it, and the caller filters again with lower thresholds.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned_buffer.h"
#include "cpu/select/candidates.h"
#include "rarefy/core/rng.h"
#include "rarefy/select/policy.h"

namespace rarefy {

struct SpendRule {
  Spend spend = Spend::priority;
  int32_t budget = 0;      // tokens to take
  int32_t num_tokens = 0;  // to take them from
  double floor = 0.0;      // Policy::floor, m: a <- ln((1 - m) exp(a) + m / num_tokens) in the random part
  ListKey key;
  int32_t first_token = 0;  // id of the first of them; they are consecutive
  int32_t num_heavy = 0;    // vattention only
  double top_p = 0.0;       // top_p only

  int32_t num_top() const;     // taken by score alone
  int32_t num_random() const;  // the others
  bool draws_keys() const;     // whether random keys pick these
};

// A token whose random key is at most `key` and whose score is at most `score` may be missing among the candidates.
struct SpendThresholds {
  float key = 0.0f;
  float score = 0.0f;
  bool lowered = false;

  // Guesses from a sample in which every token stands for `weight` tokens.
  static SpendThresholds guess(const SpendRule& rule,
                               const float* sample,  // [count] f32; a
                               int32_t count, float weight, AlignedBuffer& scratch);
  void lower();  // after spend() asked for more
  cpu::CandidateFilter filter(const SpendRule& rule) const;
};

struct Candidates {
  const int32_t* token_ids = nullptr;  // [count] i32; ascending
  const float* scores = nullptr;       // [count] f32; a
  int32_t count = 0;
};

struct SpendScratch {
  std::vector<float> mixed, keys, order;  // [count, padded] f32
  std::vector<int32_t> ids;               // [count, padded] i32
};

inline constexpr int32_t kLowerThresholds = -1;

// Fills at most min(budget, num_tokens) entries in ascending order and returns how many, or kLowerThresholds.
int32_t spend(const SpendRule& rule, const SpendThresholds& thresholds, const Candidates& candidates, SpendScratch& scratch,
              int32_t* token_ids,  // [budget] i32
              float* log_weight);  // [budget] f32

}  // namespace rarefy
