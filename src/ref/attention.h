// Attention in double precision: the oracle of every attention test, and the backend "ref".
//
// Plain loops over the inputs as the caller rounded them (q and cache dtype); nothing is rounded on the way. Besides the
// results it returns what error bounds need: the condition scale A = sum_i p_i |v_i| of every output element and the largest
// logit magnitude sum of every row. Pre: the arguments were validated against the problem. Thread-safe; nothing is kept.
#pragma once

#include <vector>

#include "rarefy/attention/decode.h"
#include "rarefy/attention/prefill.h"

namespace rarefy::ref {

// Rows are (sequence, query, query head) in decode and (query, query head) in prefill, as in the arguments.
struct AttentionResult {
  std::vector<double> out;          // [num_rows, head_dim] f64
  std::vector<double> lse;          // [num_rows] f64; natural log; -inf for an empty list without sink
  std::vector<double> rel_std;      // [num_rows] f64; of the denominator
  std::vector<double> out_rel_std;  // [num_rows] f64; +inf where out is 0 and its variance is not
  std::vector<double> condition;    // [num_rows, head_dim] f64; A = sum_i p_i |v_i|
  std::vector<double>
      spread_scale;  // [num_rows] f64; sum_i w_i (|v_i|^2 + |out|^2) / (D |out|)^2: rounding scale of out_rel_std^2
  std::vector<double> logit_scale;  // [num_rows] f64; largest scale * sum_d |q_d k_d| over the row's tokens
};

AttentionResult decode_attention(DecodeOp op, const DecodeProblem& problem, const DecodeArgs& args);
AttentionResult prefill_attention(const PrefillProblem& problem, const PrefillArgs& args);

}  // namespace rarefy::ref
