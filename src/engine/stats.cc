#include "rarefy/engine/stats.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace rarefy {
namespace {

constexpr double kSmallest = 1e-8;
constexpr double kZ95 = 1.96;  // two-sided 95 % quantile of the normal distribution
const double kLogStep = std::log(1.02);

nlohmann::json to_json_object(const QuantileSketch& sketch) {
  return {{"count", sketch.count()},
          {"mean", sketch.mean()},
          {"p50", sketch.quantile(0.5)},
          {"p95", sketch.quantile(0.95)},
          {"max", sketch.max()}};
}

nlohmann::json to_json_object(const LayerStats& layer) {
  nlohmann::json json = {{"kind", to_string(layer.kind)}};
  if (layer.kind == LayerKind::full_attention) {
    json["density"] = layer.traffic.density();
    json["bytes_ratio"] = layer.traffic.bytes_ratio();
    json["dense_steps"] = layer.traffic.dense_layer_steps;
    json["sparse_steps"] = layer.traffic.sparse_layer_steps;
  } else {
    json["fixed_bytes"] = layer.traffic.fixed_bytes;
  }
  return json;
}

}  // namespace

void QuantileSketch::add(double value) {
  if (std::isnan(value)) return;
  if (bins_.empty()) bins_.resize(kNumBins);
  min_ = count_ == 0 ? value : std::min(min_, value);
  max_ = count_ == 0 ? value : std::max(max_, value);
  ++count_;
  sum_ += value;
  sum_of_squares_ += value * value;
  const double position = value > kSmallest ? std::log(value / kSmallest) / kLogStep : 0.0;
  ++bins_[static_cast<size_t>(std::clamp(position, 0.0, static_cast<double>(kNumBins - 1)))];
}

void QuantileSketch::merge(const QuantileSketch& other) {
  if (other.count_ == 0) return;
  if (bins_.empty()) bins_.resize(kNumBins);
  min_ = count_ == 0 ? other.min_ : std::min(min_, other.min_);
  max_ = count_ == 0 ? other.max_ : std::max(max_, other.max_);
  count_ += other.count_;
  sum_ += other.sum_;
  sum_of_squares_ += other.sum_of_squares_;
  for (int32_t bin = 0; bin < kNumBins; ++bin) bins_[bin] += other.bins_[bin];
}

double QuantileSketch::quantile(double p) const {
  if (count_ == 0) return 0.0;
  const auto rank = static_cast<int64_t>(std::ceil(std::clamp(p, 0.0, 1.0) * static_cast<double>(count_)));
  if (rank <= 1) return min_;
  if (rank >= count_) return max_;
  int64_t seen = 0;
  for (int32_t bin = 0; bin < kNumBins; ++bin) {
    seen += bins_[bin];
    // The middle of the bin, never outside what was seen.
    if (seen >= rank) return std::clamp(kSmallest * std::exp((bin + 0.5) * kLogStep), min_, max_);
  }
  return max_;
}

void Traffic::add(const Traffic& other) {
  dense_layer_steps += other.dense_layer_steps;
  sparse_layer_steps += other.sparse_layer_steps;
  tokens_read += other.tokens_read;
  tokens_cached += other.tokens_cached;
  row_bytes += other.row_bytes;
  index_bytes += other.index_bytes;
  dense_bytes += other.dense_bytes;
  sliding_layer_steps += other.sliding_layer_steps;
  linear_layer_steps += other.linear_layer_steps;
  fixed_bytes += other.fixed_bytes;
}

double normal_quantile(double p) {
  double low = -40.0, high = 40.0;
  for (int32_t step = 0; step < 100; ++step) {
    const double middle = 0.5 * (low + high);
    (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

RateLimits rate_limits(int64_t hits, int64_t count) {
  if (count <= 0) return {};
  constexpr double kZ = 1.6449;  // one-sided 95 % quantile of the normal distribution
  const double n = static_cast<double>(count), rate = static_cast<double>(hits) / n, square = kZ * kZ / n;
  const double middle = (rate + 0.5 * square) / (1.0 + square);
  const double half = std::sqrt(square * (rate * (1.0 - rate) + 0.25 * square)) / (1.0 + square);
  return {hits == 0 ? 0.0 : std::max(0.0, middle - half), hits == count ? 1.0 : std::min(1.0, middle + half)};
}

std::string_view to_string(ListOutcome outcome) {
  switch (outcome) {
    case ListOutcome::unjudged: return "unjudged";
    case ListOutcome::first: return "first";
    case ListOutcome::enlarged: return "enlarged";
    case ListOutcome::capped: return "capped";
    case ListOutcome::dense: return "dense";
  }
  return "unknown";
}

void ListCounts::add(ListOutcome outcome) {
  switch (outcome) {
    case ListOutcome::unjudged: break;
    case ListOutcome::first: ++first; break;
    case ListOutcome::enlarged: ++enlarged; break;
    case ListOutcome::capped: ++capped; break;
    case ListOutcome::dense: ++dense; break;
  }
}

void ListCounts::merge(const ListCounts& other) {
  first += other.first;
  enlarged += other.enlarged;
  capped += other.capped;
  dense += other.dense;
}

bool AuditStats::promise_broken() const {
  return promised_pairs > 0 && (delta > 0.0 ? rate_limits(violations, promised_pairs).lower > delta : violations > 0);
}

void AuditStats::add(const AuditedStep& step) {
  const size_t num_heads = step.error.size();
  layer_error.resize(static_cast<size_t>(step.num_layers));
  head_error.resize(static_cast<size_t>(step.num_layers) * num_heads);
  ++layer_steps;
  eps = step.eps;
  delta = step.delta;
  for (size_t head = 0; head < num_heads; ++head) {
    const double value = step.error[head], estimate = step.out_rel_std[head];
    error.add(value);
    layer_error[static_cast<size_t>(step.layer)].add(value);
    head_error[static_cast<size_t>(step.layer) * num_heads + head].add(value);
    mass.add(step.mass[head]);
    if (eps > 0.0) {
      ++promised_pairs;
      if (!(value <= eps)) ++violations;
    }
    if (estimate > 0.0) {
      ++certificate_pairs;
      certificate_ratio.add(value / estimate);
      if (value <= kZ95 * estimate) ++certificate_covered;
    }
    if (value > worst.error || worst.layer < 0) worst = {value, step.layer, static_cast<int32_t>(head), step.position};
  }
}

void AuditStats::merge(const AuditStats& other) {
  layer_steps += other.layer_steps;
  error.merge(other.error);
  layer_error.resize(std::max(layer_error.size(), other.layer_error.size()));
  for (size_t i = 0; i < other.layer_error.size(); ++i) layer_error[i].merge(other.layer_error[i]);
  head_error.resize(std::max(head_error.size(), other.head_error.size()));
  for (size_t i = 0; i < other.head_error.size(); ++i) head_error[i].merge(other.head_error[i]);
  mass.merge(other.mass);
  certificate_ratio.merge(other.certificate_ratio);
  certificate_pairs += other.certificate_pairs;
  certificate_covered += other.certificate_covered;
  if (other.promised_pairs > 0) eps = other.eps, delta = other.delta;
  promised_pairs += other.promised_pairs;
  violations += other.violations;
  if (other.worst.error > worst.error || worst.layer < 0) worst = other.worst;
}

void RunStats::merge(const RunStats& other) {
  prefill_tokens += other.prefill_tokens;
  prefill_seconds += other.prefill_seconds;
  decode_tokens += other.decode_tokens;
  decode_seconds += other.decode_seconds;
  audit_seconds += other.audit_seconds;
  traffic.add(other.traffic);
  layers.resize(std::max(layers.size(), other.layers.size()));
  for (size_t i = 0; i < other.layers.size(); ++i) {
    layers[i].kind = other.layers[i].kind;
    layers[i].traffic.add(other.layers[i].traffic);
  }
  estimated_error.merge(other.estimated_error);
  bounded_error.merge(other.bounded_error);
  lists.merge(other.lists);

  audit.merge(other.audit);
}

std::string RunStats::to_json() const {
  nlohmann::json json = {
      {"policy", policy},
      {"prefill_tokens", prefill_tokens},
      {"prefill_seconds", prefill_seconds},
      {"prefill_tokens_per_second", prefill_tokens_per_second()},
      {"decode_tokens", decode_tokens},
      {"decode_seconds", decode_seconds},
      {"decode_tokens_per_second", decode_tokens_per_second()},
      {"audit_seconds", audit_seconds},
      {"density", traffic.density()},
      {"bytes_ratio", traffic.bytes_ratio()},
      {"row_bytes", traffic.row_bytes},
      {"index_bytes", traffic.index_bytes},
      {"dense_bytes", traffic.dense_bytes},
      {"dense_layer_steps", traffic.dense_layer_steps},
      {"sparse_layer_steps", traffic.sparse_layer_steps},
      {"sliding_layer_steps", traffic.sliding_layer_steps},
      {"linear_layer_steps", traffic.linear_layer_steps},
      {"fixed_bytes", traffic.fixed_bytes},
      {"estimated", {{"out_rel_std", to_json_object(estimated_error)}}},
  };
  if (bounded_error.count() > 0) json["bounded"] = {{"error", to_json_object(bounded_error)}};
  if (lists.total() > 0) {
    json["lists"] = {
        {"first", lists.first}, {"enlarged", lists.enlarged}, {"capped", lists.capped}, {"dense", lists.dense}};
  }
  for (const LayerStats& layer : layers) json["layers"].push_back(to_json_object(layer));
  if (audit.layer_steps > 0) {
    nlohmann::json layers = nlohmann::json::array();
    for (const QuantileSketch& layer : audit.layer_error) layers.push_back(to_json_object(layer));
    nlohmann::json heads = nlohmann::json::array();
    for (const QuantileSketch& head : audit.head_error) heads.push_back(to_json_object(head));
    json["audited"] = {
        {"layer_steps", audit.layer_steps},
        {"error", to_json_object(audit.error)},
        {"error_per_layer", layers},
        {"error_per_head", heads},  // [layer * num_q_heads + head]
        {"mass", to_json_object(audit.mass)},
        {"certificate_ratio", to_json_object(audit.certificate_ratio)},
        {"certificate_pairs", audit.certificate_pairs},
        {"certificate_covered_95", audit.certificate_covered},
        {"worst",
         {{"error", audit.worst.error},
          {"layer", audit.worst.layer},
          {"head", audit.worst.head},
          {"position", audit.worst.position}}},
    };
    if (audit.promised_pairs > 0) {
      const RateLimits limits = rate_limits(audit.violations, audit.promised_pairs);
      json["audited"]["violations"] = {
          {"eps", audit.eps},
          {"delta", audit.delta},
          {"pairs", audit.promised_pairs},
          {"count", audit.violations},
          {"rate", audit.violation_rate()},
          {"rate_lower_95", limits.lower},
          {"rate_upper_95", limits.upper},
      };
    }
  }
  return json.dump();
}

}  // namespace rarefy
