// Sampler: from logits to the next token. temperature 0 is greedy (ties: the lowest id). Counter-based, so the same seed and
// positions give the same tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "rarefy/core/status.h"

namespace rarefy {

struct SamplerOptions {
  double temperature = 0.0;  // 0 = greedy
  int32_t top_k = 0;         // 0 = all tokens
  double top_p = 1.0;        // smallest set of tokens with at least this probability
  uint64_t seed = 0;
};

class Sampler {
 public:
  static Expected<Sampler> make(const SamplerOptions& options);
  // Draws the token at `position`.
  int32_t sample(std::span<const float> logits, int64_t position);  // logits: [vocab_size] f32; -inf excludes

 private:
  explicit Sampler(const SamplerOptions& options) : options_(options) {}
  SamplerOptions options_;
  std::vector<int32_t> order_;       // [vocab_size] i32; scratch
  std::vector<double> probability_;  // [vocab_size] f64; scratch
};

}  // namespace rarefy
