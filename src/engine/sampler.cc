#include "rarefy/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "rarefy/core/rng.h"

namespace rarefy {

Expected<Sampler> Sampler::make(const SamplerOptions& options) {
  if (!(options.temperature >= 0.0) || std::isinf(options.temperature)) {
    return Status::invalid_argument("temperature: expected a number of at least 0 (0 = greedy), got " +
                                    std::to_string(options.temperature));
  }
  if (options.top_k < 0) {
    return Status::invalid_argument("top_k: expected at least 0 (0 = all tokens), got " + std::to_string(options.top_k));
  }
  if (!(options.top_p > 0.0 && options.top_p <= 1.0)) {
    return Status::invalid_argument("top_p: expected a number in (0, 1], got " + std::to_string(options.top_p));
  }
  return Sampler(options);
}

int32_t Sampler::sample(std::span<const float> logits, int64_t position) {
  const auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  if (options_.temperature == 0.0) return best;

  const auto vocab_size = static_cast<int32_t>(logits.size());
  order_.resize(vocab_size);
  std::iota(order_.begin(), order_.end(), 0);
  int32_t kept = vocab_size;
  const auto by_logit = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  const bool truncated = (options_.top_k > 0 && options_.top_k < vocab_size) || options_.top_p < 1.0;
  if (truncated) std::sort(order_.begin(), order_.end(), by_logit);
  if (options_.top_k > 0) kept = std::min(kept, options_.top_k);

  probability_.resize(kept);
  double total = 0.0;
  for (int32_t i = 0; i < kept; ++i) {
    probability_[i] = std::exp((static_cast<double>(logits[order_[i]]) - logits[best]) / options_.temperature);
    total += probability_[i];
  }
  if (options_.top_p < 1.0) {
    const double target = options_.top_p * total;
    double sum = 0.0;
    int32_t last = 0;
    while (last < kept && sum < target) sum += probability_[last++];
    kept = std::max(last, 1);
    total = sum;
  }
  const auto bits =
      philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(static_cast<uint64_t>(position) >> 32),
                  static_cast<uint32_t>(RngPurpose::sample_token), 0},
                 {static_cast<uint32_t>(options_.seed), static_cast<uint32_t>(options_.seed >> 32)});
  const double uniform = (static_cast<double>(bits[0]) * 0x1p32 + bits[1] + 0.5) * 0x1p-64;
  double remaining = uniform * total;
  for (int32_t i = 0; i < kept; ++i) {
    remaining -= probability_[i];
    if (remaining <= 0.0) return order_[i];
  }
  return order_[kept - 1];  // rounding left a crumb
}

}  // namespace rarefy
