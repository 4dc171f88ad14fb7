// What a run did and how far it strayed: timings, traffic, estimated errors and audited errors. Every error figure carries its
// label: *estimated* figures come from the certificate of the sampling, *audited* ones from dense attention recomputed beside
// the sparse one. Plain values; mergeable; no locks.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rarefy/core/status.h"
#include "rarefy/model/config.h"

namespace rarefy {

// Quantiles of non-negative numbers in constant memory: counts on a logarithmic grid of 2 % steps from 1e-8 to 1e4, plus the
// exact extremes. A quantile is exact to one grid step.
class QuantileSketch {
 public:
  void add(double value);
  void merge(const QuantileSketch& other);
  int64_t count() const { return count_; }
  double mean() const { return count_ > 0 ? sum_ / static_cast<double>(count_) : 0.0; }
  double mean_square() const { return count_ > 0 ? sum_of_squares_ / static_cast<double>(count_) : 0.0; }
  double max() const { return max_; }
  double quantile(double p) const;  // 0 <= p <= 1; 0 when empty

 private:
  static constexpr int32_t kNumBins = 1400;  // ln(1e12) / ln(1.02) = 1396
  int64_t count_ = 0;
  double sum_ = 0.0, sum_of_squares_ = 0.0;
  double min_ = 0.0, max_ = 0.0;
  std::vector<int64_t> bins_;  // empty until the first add
};

// The z below which a standard normal number lies with probability p, 0 < p < 1.
double normal_quantile(double p);

// Wilson's one-sided limits for a probability of which `hits` in `count` independent trials were seen; each holds with 95 %.
struct RateLimits {
  double lower = 0.0, upper = 1.0;
};
RateLimits rate_limits(int64_t hits, int64_t count);

// What became of a list under eps= (docs/certificate.md).
enum class ListOutcome : int32_t {
  unjudged = 0,  // no eps
  first = 1,     // accepted with the first budget
  enlarged = 2,  // accepted with a larger one
  capped = 3,    // accepted with the largest one
  dense = 4,     // no budget was enough: dense attention for this list
};
std::string_view to_string(ListOutcome outcome);

// Lists by outcome.
struct ListCounts {
  int64_t first = 0, enlarged = 0, capped = 0, dense = 0;
  void add(ListOutcome outcome);
  void merge(const ListCounts& other);
  int64_t total() const { return first + enlarged + capped + dense; }
};

// KV traffic of decode steps. `dense_bytes` is what dense attention would have read in the same steps. Everything but the last
// three counts full-attention layers, the only ones that a policy applies to; so do density and bytes_ratio.
struct Traffic {
  int64_t dense_layer_steps = 0;   // (layer, step) pairs that ran dense
  int64_t sparse_layer_steps = 0;  // (layer, step) pairs that ran through an IndexSet
  int64_t tokens_read = 0;         // over all lists
  int64_t tokens_cached = 0;
  int64_t row_bytes = 0;
  int64_t index_bytes = 0;
  int64_t dense_bytes = 0;
  int64_t sliding_layer_steps = 0;  // (layer, step) pairs of sliding-window layers
  int64_t linear_layer_steps = 0;   // (layer, step) pairs of linear-attention layers
  int64_t fixed_bytes = 0;          // windows read, states read and written, by these

  void add(const Traffic& other);
  double density() const {
    return tokens_cached > 0 ? static_cast<double>(tokens_read) / static_cast<double>(tokens_cached) : 1.0;
  }
  double bytes_ratio() const {
    return dense_bytes > 0 ? static_cast<double>(row_bytes + index_bytes) / static_cast<double>(dense_bytes) : 1.0;
  }
};

// The part of one layer.
struct LayerStats {
  LayerKind kind = LayerKind::full_attention;
  Traffic traffic;
};

// Where the largest audited error was seen.
struct WorstPlace {
  double error = 0.0;
  int32_t layer = -1;
  int32_t head = -1;
  int64_t position = -1;
};

// One audited (layer, step) pair.
struct AuditedStep {
  int32_t layer = 0;
  int32_t num_layers = 0;  // of the model
  int64_t position = 0;
  std::span<const double> error;       // [num_q_heads] f64
  std::span<const double> mass;        // [num_q_heads] f64
  std::span<const float> out_rel_std;  // [num_q_heads] f32
  double eps = 0.0;                    // promised error; 0 = none
  double delta = 0.0;                  // promised share of violations; 0 = none is allowed
};

// Dense recomputation of a sample of (layer, step) pairs.
struct AuditStats {
  int64_t layer_steps = 0;                  // audited pairs
  QuantileSketch error;                     // |out - dense| / |dense| per head
  std::vector<QuantileSketch> layer_error;  // [num_layers]
  std::vector<QuantileSketch> head_error;   // [num_layers * num_q_heads]
  QuantileSketch mass;                      // attention probability of the selected tokens under dense attention
  QuantileSketch certificate_ratio;         // audited error / estimated error, where the latter is not 0
  int64_t certificate_pairs = 0;            // heads with an estimated error
  int64_t certificate_covered = 0;          // of these, audited error <= 1.96 * estimated error
  WorstPlace worst;
  // Of a policy with eps, over all audited (step, layer, head) triples, those of capped and fallen-back lists included:
  double eps = 0.0, delta = 0.0;
  int64_t promised_pairs = 0;
  int64_t violations = 0;  // audited error > eps
  double violation_rate() const {
    return promised_pairs > 0 ? static_cast<double>(violations) / static_cast<double>(promised_pairs) : 0.0;
  }
  // Whether more errors exceed eps than promised, beyond what chance explains at 95 %.
  bool promise_broken() const;

  void add(const AuditedStep& step);
  void merge(const AuditStats& other);
};

struct RunStats {
  int64_t prefill_tokens = 0;
  double prefill_seconds = 0.0;
  int64_t decode_tokens = 0;
  double decode_seconds = 0.0;  // audits excluded
  double audit_seconds = 0.0;
  std::string policy;  // resolved text
  Traffic traffic;
  std::vector<LayerStats> layers;  // [num_layers]; empty before the first decode step
  QuantileSketch estimated_error;  // out_rel_std per (step, layer, head) of sparse layers
  QuantileSketch bounded_error;    // bound per (step, layer, head), with certify=bounded
  ListCounts lists;                // judged by eps
  AuditStats audit;

  double prefill_tokens_per_second() const {
    return prefill_seconds > 0 ? static_cast<double>(prefill_tokens) / prefill_seconds : 0.0;
  }
  double decode_tokens_per_second() const {
    return decode_seconds > 0 ? static_cast<double>(decode_tokens) / decode_seconds : 0.0;
  }
  void merge(const RunStats& other);  // adds another run; keeps this policy text
  std::string to_json() const;        // one line
};

}  // namespace rarefy
