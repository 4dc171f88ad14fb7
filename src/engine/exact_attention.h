// Dense attention of one decode step in double precision, with what a selection can be compared to: every logit, every rank.
// One object serves many steps and keeps its buffers; it belongs to one thread at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "rarefy/attention/paged_kv.h"

namespace rarefy {

struct ExactProblem {
  int32_t num_q_heads = 0;
  float scale = 1.0f;
  float logit_soft_cap = 0.0f;
};

class ExactAttention {
 public:
  // `q` [num_q_heads, head_dim] f32; kv is of one sequence
  void compute(const ExactProblem& problem, const float* q, const PagedKvView& kv);

  int32_t kv_len() const { return kv_len_; }
  const double* out(int32_t head) const;  // [head_dim] f64
  // exp(logit - lse): what dense attention gives a token.
  double probability(int32_t head, int32_t token) const;
  // 0 for the token of the largest logit of this head, 1 for the next; equal ones by position.
  int32_t head_rank(int32_t head, int32_t token) const { return head_ranks_[index(head, token)]; }
  // The same for the largest probability over the group of a KV head.
  int32_t group_rank(int32_t kv_head, int32_t token) const { return group_ranks_[index(kv_head, token)]; }

  // |out of the group's best `count` tokens - out| / |out| of a head.
  double truncation_error(int32_t head, int32_t count) const;

 private:
  std::size_t index(int32_t row, int32_t token) const {
    return static_cast<std::size_t>(row) * static_cast<std::size_t>(kv_len_) + static_cast<std::size_t>(token);
  }
  // `pool` [num_pages, page_size, num_kv_heads, head_dim] dtype; the view's keys or values
  void widen(const PagedKvView& kv, const void* pool, std::vector<float>& rows) const;
  void attend_head(const ExactProblem& problem, const float* q, int32_t head);

  int32_t kv_len_ = 0, head_dim_ = 0, group_ = 1, num_kv_heads_ = 0;
  std::vector<float> keys_, values_;  // [num_kv_heads, kv_len, head_dim] f32
  std::vector<double> logits_;        // [num_q_heads, kv_len] f64; after the soft cap
  std::vector<double> lse_;           // [num_q_heads] f64
  std::vector<double> out_;           // [num_q_heads, head_dim] f64
  std::vector<int32_t> head_ranks_;   // [num_q_heads, kv_len] i32
  std::vector<int32_t> group_order_;  // [num_kv_heads, kv_len] i32; tokens, best first
  std::vector<int32_t> group_ranks_;  // [num_kv_heads, kv_len] i32
};

// |got - exact| / |exact|; 0 where exact is 0. `got` and `exact` [head_dim]
double relative_error(const double* got,    // [head_dim] f64
                      const double* exact,  // [head_dim] f64
                      int32_t head_dim);

}  // namespace rarefy
