// Selection in double precision: scores of every selector from its stored numbers, group scores, and the spending rules as
// one sort. The oracle of the tests of src/select and src/cpu/select. Plain loops; thread-safe; nothing is kept.
#pragma once

#include <cstdint>
#include <vector>

#include "rarefy/core/rng.h"

namespace rarefy::ref {

// Exact scores, and sum_d |q_d k_d|, the scale of their rounding errors.
struct Scores {
  std::vector<double> value;      // [num_keys] f64
  std::vector<double> magnitude;  // [num_keys] f64
};
Scores exact_scores(const float* q,     // [head_dim] f32; multiplied by the attention scale
                    const float* keys,  // [num_keys, head_dim] f32
                    int64_t num_keys, int32_t head_dim);

// Rounds of sign flips and a Walsh-Hadamard matrix per block, written out: out_i = sum_j (-1)^popcount(i & j) factors_j x_j.
std::vector<double> rotate(const float* x,                            // [head_dim] f32
                           const std::vector<float>& factors,         // [num_rounds, head_dim] f32
                           const std::vector<int32_t>& block_sizes);  // they add up to head_dim

// Quest: sum_d max(q_d minimum_d, q_d maximum_d).
double page_bound(const float* q,        // [head_dim] f32
                  const double* minima,  // [head_dim] f64
                  const double* maxima,  // [head_dim] f64
                  int32_t head_dim);

// Dot products with centroids that are stored dimension by dimension, and squared distances to them.
std::vector<double> centroid_dots(const float* x,  // [dim] f32
                                  int32_t dim,
                                  const float* centroids,  // [dim, count] f32
                                  int32_t count);
std::vector<double> centroid_distances(const float* x,  // [dim] f32
                                       int32_t dim,
                                       const float* centroids,  // [dim, count] f32
                                       int32_t count);

// MagicPIG: the logit that (count + 1/2) / (num_tables + 1) collisions of num_signs signs speak for.
double collision_score(const float* q,     // [head_dim] f32; multiplied by the attention scale
                       const float* mean,  // [head_dim] f32
                       int32_t head_dim, double longest, int32_t count, int32_t num_signs, int32_t num_tables);
// SOCKET without |v|: ln of the sum over tables of the softmax over all 2^num_signs corners, at the corner of the id.
double soft_collision_score(const float* q,  // [head_dim] f32; multiplied by the attention scale 1 / sqrt(head_dim)
                            int32_t head_dim,
                            const float* planes,              // [ids.size() * num_signs, head_dim] f32
                            const std::vector<int32_t>& ids,  // of the key, one for each table
                            int32_t num_signs, double temperature);

// Least squares with a slope of at least 0; a constant for fewer than 3 points.
struct LineFit {
  double slope = 0.0, intercept = 0.0, residual_variance = 0.0;
};
LineFit fit_line(const std::vector<double>& x,   // [count] f64
                 const std::vector<double>& y);  // [count] f64

double log_sum_exp(const double* values, int64_t count);  // [count] f64

// a_i = max over queries of scores - log_sums.
std::vector<double> group_scores(const std::vector<std::vector<double>>& scores,  // [num_queries][num_tokens] f64
                                 const std::vector<double>& log_sums);            // [num_queries] f64

enum class Draw { priority, flat, systematic, gumbel };

struct SpendProblem {
  int32_t num_top = 0;     // taken by score alone
  int32_t num_random = 0;  // taken by chance among the others
  Draw draw = Draw::priority;
  double top_p = 0.0;       // > 0: the top part stops where it holds more than this share of sum exp(a)
  double floor = 0.0;       // a <- ln((1 - floor) exp(a) + floor / num_tokens) in the random part
  int32_t first_token = 0;  // id of scores[0]
  ListKey key;
};

struct SpendResult {
  std::vector<int32_t> token_ids;  // [num_selected] i32; ascending
  std::vector<double> log_weight;  // [num_selected] f64; same order
  std::vector<double> keys;        // [num_tokens] f64; random keys of every token, after the floor; empty without
  double top_cut = 0.0;            // smallest score taken by score; -inf if none
  double tau = 0.0;                // the first key that was not taken; -inf if all were
};

SpendResult spend(const SpendProblem& problem, const std::vector<double>& scores);  // [num_tokens] f64; a

}  // namespace rarefy::ref
