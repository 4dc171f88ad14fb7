// How large an even sample of the residual must be: the (eps, delta) rule of vAttention (arXiv 2510.05688) for the denominator and
// for the numerator, each with half of delta. With
//   e = eps / (2 + eps),  z = z_{1 - delta / 4},  n tokens in the residual,  r_j = exp(s_j) / D  of a first even sample,
//   b_D = (z n std(r) / e)^2,   b_N = (z n sqrt(sum_d var(r v_d)) / (e |out|))^2,
// both sums err by at most a share e with probability 1 - delta / 2, so that |out - dense| <= 2 e / (1 - e) |dense| = eps |dense|.
// Drawing without replacement needs b n / (b + n) instead of b. Thread-safe; nothing is kept.
#pragma once

#include <cstdint>

#include "rarefy/attention/paged_kv.h"

namespace rarefy {

struct TailProblem {
  double eps = 0.0, delta = 0.0;
  int32_t group = 1;  // query heads of the list
  int32_t head_dim = 0;
  int32_t kv_head = 0;
  float scale = 1.0f;
  float logit_soft_cap = 0.0f;
  const float* q = nullptr;    // [group, head_dim] f32; of the list's heads
  const float* out = nullptr;  // [group, head_dim] f32; estimate from the first sample
  const float* lse = nullptr;  // [group] f32; estimate from the first sample, ln D
  PagedKvView kv;
  const int32_t* token_ids = nullptr;  // [count] i32; the list
  const float* log_weight = nullptr;   // [count] f32; above 0 for the tokens of the sample
  int32_t count = 0;
};

struct TailSize {
  double tokens = 0.0;  // b, the largest over the group's heads; infinite when no sample is enough
  int32_t first = 0;    // tokens of the first sample
};

TailSize tail_size(const TailProblem& problem);

}  // namespace rarefy
