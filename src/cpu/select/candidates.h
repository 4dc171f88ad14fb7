// From scores to candidates: what follows scoring.
//
// For token i with scores s_hi: a_i = max_h (s_hi - L_h), its group score. A token is a candidate when its random key a_i - ln u_i may exceed a
// threshold, or when a_i does. The logarithm is never taken here: key > T holds exactly when u < exp(a - T), and exp is bounded
// from above by its chord between powers of two, which is one multiplication and a reinterpretation of bits (at most 6 %
// too many candidates). What is dropped is below both thresholds for certain.
//
// Thread-safe; nothing is kept.
#pragma once

#include <cstdint>
#include <limits>

#include "rarefy/core/rng.h"

namespace rarefy::cpu {

// Scores outside +-kLargestScore, NaN included, are moved there: weights derived from them stay finite.
inline constexpr float kLargestScore = 1e30f;
inline constexpr int32_t kCandidatePadding = 16;  // elements written past the last candidate: one vector

struct CandidateFilter {
  ListKey key;
  // The random criterion compares u with an upper bound of exp(max(a + floor_add, floor_min) - T).
  float floor_add = 0.0f;
  float floor_min = -std::numeric_limits<float>::infinity();
  float bound_slope = 0.0f, bound_offset = 0.0f;  // set by one of the functions below
  // The other criterion is a > score_threshold.
  float score_threshold = std::numeric_limits<float>::infinity();

  void keep_keys_above(float threshold);      // every token whose key exceeds `threshold` (and a few more)
  void keep_uniforms_up_to(float threshold);  // every token with u <= threshold, whatever its score
};

struct FoundCandidates {
  int32_t count = 0;
  float largest = -kLargestScore;  // group score of all tokens that were looked at
};

// Writes the candidates among [first_token, first_token + num_tokens) in ascending order.
FoundCandidates filter_candidates(const CandidateFilter& filter,
                                  const float* group_scores,  // [num_tokens] f32; a_i; within +-kLargestScore
                                  int32_t first_token, int32_t num_tokens,
                                  int32_t* token_ids,   // [num_tokens + kCandidatePadding] i32
                                  float* kept_scores);  // [num_tokens + kCandidatePadding] f32; a_i

// a_i of all tokens, moved into +-kLargestScore.
void group_scores(const float* scores,  // [num_queries, score_stride] f32
                  int64_t score_stride, int32_t num_queries,
                  const float* log_sums,  // [num_queries] f32
                  int32_t num_tokens,
                  float* out);  // [num_tokens] f32

// Raises `maxima` to the largest score of each query over the tokens; NaN does not count.
void raise_maxima(const float* scores,  // [num_queries, score_stride] f32
                  int64_t score_stride, int32_t num_queries, int32_t num_tokens,
                  float* maxima);  // [num_queries] f32

// keys = a - ln u.
void random_keys(ListKey key,
                 const int32_t* token_ids,  // [count] i32
                 const float* scores,       // [count] f32; a
                 int32_t count,
                 float* keys);  // [count] f32

// The n-th largest value, 1 <= n <= count: keeps what lies between two values of a sample, then halves the interval of float
// bits and keeps the side that holds it, without the mispredicted branches of a quickselect. Overwrites the values. Pre: no NaN.
float nth_largest(float* values, int32_t count, int32_t n);  // [count + kCandidatePadding] f32

int32_t count_at_least(const float* scores,  // [count] f32
                       int32_t count, float cut);
// Sets keys and mixed scores to infinity where the score is at least `cut`.
void raise_at_least(const float* scores,  // [count] f32
                    int32_t count, float cut,
                    float* keys,    // [count] f32
                    float* mixed);  // [count] f32

// Copies the tokens whose keys exceed tau, in order, with weights max(0, tau - a); returns how many.
int32_t take_above(const int32_t* token_ids,  // [count] i32
                   const float* scores,       // [count] f32; a
                   const float* keys,         // [count] f32
                   int32_t count, float tau,
                   int32_t* out_ids,     // [count + kCandidatePadding] i32
                   float* out_weights);  // [count + kCandidatePadding] f32

// ln of the sum of exp(values); -inf for no values.
float log_sum_exp(const float* values, int32_t count);  // [count] f32

// T with weight * sum_i min(1, exp(a_i - T)) = target, to about 3 %: the threshold that `target` keys are expected to exceed.
// -inf when all tokens together are fewer.
float expected_key_threshold(const float* scores,  // [count] f32; a, a sample of the tokens
                             int32_t count, float weight, float target,
                             float* scratch);  // [count + 2 * kCandidatePadding] f32; 64-byte aligned

}  // namespace rarefy::cpu
