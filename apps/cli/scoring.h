// Next-token scores of one arm beside dense attention, token by token.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <vector>

#include "statistics.h"

namespace rarefy::cli {

struct PassageScores {
  std::vector<double> losses;       // [num_tokens] f64; nats
  std::vector<double> divergences;  // [num_tokens] f64; KL(dense || this arm), nats
  int64_t same_top = 0;             // tokens whose most probable next token is that of dense

  // Logits of -inf are excluded tokens.
  void add(std::span<const float> dense,   // [vocab_size] f32
           std::span<const float> logits,  // [vocab_size] f32
           int32_t target);
  void add(const PassageScores& other);
  double same_top_share() const;

  nlohmann::json to_json() const;
  static PassageScores from_json(const nlohmann::json& json);
};

}  // namespace rarefy::cli
