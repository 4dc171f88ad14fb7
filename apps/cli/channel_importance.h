// Which dimensions of a head's keys carry its logits: mean |q_c| mean |k_c| over the queries and keys of a text, the mean of |q_c k_c|
// over all pairs. Double Sparsity (arXiv 2408.07092) keeps the first few.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "rarefy/engine/session.h"

namespace rarefy::cli {

class ChannelImportance {
 public:
  explicit ChannelImportance(const ModelConfig& config);

  // Decodes `tokens` densely on a fork of `context`, and takes in its queries and what is cached by then.
  void add(const Session& context, const std::vector<int32_t>& tokens);  // tokens [num_tokens] i32
  // {"head_dim", "layers": [num_layers][num_kv_heads][head_dim] channels by falling importance; [] for layers of another kind}
  nlohmann::ordered_json to_json() const;

 private:
  double* sums(std::vector<double>& from, int32_t layer, int32_t kv_head) const;  // from [num_layers, num_kv_heads, head_dim] f64
  void add_query(int32_t layer, const float* q);                                 // q [num_q_heads, head_dim] f32
  void add_keys(const Session& session, int32_t layer);

  ModelConfig config_;
  std::vector<double> queries_, keys_;  // [num_layers, num_kv_heads, head_dim] f64; sums of |q_c| and |k_c|
};

}  // namespace rarefy::cli
