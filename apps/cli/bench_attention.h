// The measurement behind `rarefy bench attention`: one case, all arms interleaved in one process, every arm from cold caches.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attention_case.h"

namespace rarefy::cli {

// Times of one arm, in repetition order.
struct MeasuredArm {
  std::string op;              // "read_bandwidth", "dense_decode", "sparse_decode", "append_select_attend"
  std::string implementation;  // of the attention kernel; empty for read_bandwidth
  std::string policy, policy_resolved;
  DType q_dtype = DType::f32;
  double bytes = 0.0;           // keys, values and index that one call has to read
  int64_t num_selected = 0;     // tokens of one list; mean over lists with a policy
  std::vector<double> time_us;  // [num_repeats] f64
};

// Arms in the order of the list above; the policy arms in the order of the case.
std::vector<MeasuredArm> measure_attention_case(const AttentionBenchCase& description, int32_t num_repeats);

}  // namespace rarefy::cli
