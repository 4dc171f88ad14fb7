#include "arm_counters.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace rarefy::cli {
namespace {

double root_mean_square(double squares, int64_t count) {
  return count > 0 ? std::sqrt(squares / static_cast<double>(count)) : 0.0;
}

}  // namespace

void ArmCounters::add(const RunStats& stats) {
  ArmCounters other;
  other.traffic = stats.traffic;
  other.decode_tokens = stats.decode_tokens;
  other.decode_seconds = stats.decode_seconds;
  other.estimated_count = stats.estimated_error.count();
  other.estimated_squares = stats.estimated_error.mean_square() * static_cast<double>(other.estimated_count);
  other.audited_count = stats.audit.error.count();
  other.audited_squares = stats.audit.error.mean_square() * static_cast<double>(other.audited_count);
  other.audited_max = stats.audit.error.max();
  other.certificate_pairs = stats.audit.certificate_pairs;
  other.certificate_covered = stats.audit.certificate_covered;
  other.lists = stats.lists;
  other.promise = stats.audit.promise;
  add(other);
}

void ArmCounters::add(const ArmCounters& other) {
  traffic.add(other.traffic);
  decode_tokens += other.decode_tokens;
  decode_seconds += other.decode_seconds;
  estimated_count += other.estimated_count;
  estimated_squares += other.estimated_squares;
  audited_count += other.audited_count;
  audited_squares += other.audited_squares;
  audited_max = std::max(audited_max, other.audited_max);
  certificate_pairs += other.certificate_pairs;
  certificate_covered += other.certificate_covered;
  lists.merge(other.lists);
  promise.merge(other.promise);
}

double ArmCounters::estimated_rms() const { return root_mean_square(estimated_squares, estimated_count); }
double ArmCounters::audited_rms() const { return root_mean_square(audited_squares, audited_count); }

nlohmann::json ArmCounters::to_json() const {
  return {{"dense_layer_steps", traffic.dense_layer_steps},
          {"sparse_layer_steps", traffic.sparse_layer_steps},
          {"tokens_read", traffic.tokens_read},
          {"tokens_cached", traffic.tokens_cached},
          {"row_bytes", traffic.row_bytes},
          {"index_bytes", traffic.index_bytes},
          {"dense_bytes", traffic.dense_bytes},
          {"decode_tokens", decode_tokens},
          {"decode_seconds", decode_seconds},
          {"estimated_count", estimated_count},
          {"estimated_squares", estimated_squares},
          {"audited_count", audited_count},
          {"audited_squares", audited_squares},
          {"audited_max", audited_max},
          {"certificate_pairs", certificate_pairs},
          {"certificate_covered", certificate_covered},
          {"lists_first", lists.first},
          {"lists_enlarged", lists.enlarged},
          {"lists_capped", lists.capped},
          {"lists_dense", lists.dense},
          {"promise_eps", promise.eps},
          {"promise_delta", promise.delta},
          {"promise_pairs", promise.pairs},
          {"promise_violations", promise.violations}};
}

ArmCounters ArmCounters::from_json(const nlohmann::json& json) {
  ArmCounters counters;
  counters.traffic.dense_layer_steps = json.at("dense_layer_steps");
  counters.traffic.sparse_layer_steps = json.at("sparse_layer_steps");
  counters.traffic.tokens_read = json.at("tokens_read");
  counters.traffic.tokens_cached = json.at("tokens_cached");
  counters.traffic.row_bytes = json.at("row_bytes");
  counters.traffic.index_bytes = json.at("index_bytes");
  counters.traffic.dense_bytes = json.at("dense_bytes");
  counters.decode_tokens = json.at("decode_tokens");
  counters.decode_seconds = json.at("decode_seconds");
  counters.estimated_count = json.at("estimated_count");
  counters.estimated_squares = json.at("estimated_squares");
  counters.audited_count = json.at("audited_count");
  counters.audited_squares = json.at("audited_squares");
  counters.audited_max = json.at("audited_max");
  counters.certificate_pairs = json.at("certificate_pairs");
  counters.certificate_covered = json.at("certificate_covered");
  // Records of versions without eps= lack these.
  counters.lists.first = json.value("lists_first", int64_t{0});
  counters.lists.enlarged = json.value("lists_enlarged", int64_t{0});
  counters.lists.capped = json.value("lists_capped", int64_t{0});
  counters.lists.dense = json.value("lists_dense", int64_t{0});
  counters.promise.eps = json.value("promise_eps", 0.0);
  counters.promise.delta = json.value("promise_delta", 0.0);
  counters.promise.pairs = json.value("promise_pairs", int64_t{0});
  counters.promise.violations = json.value("promise_violations", int64_t{0});
  return counters;
}

void ArmCounters::describe(nlohmann::ordered_json& record) const {
  record["density"] = traffic.density();
  record["bytes_ratio"] = traffic.bytes_ratio();
  const int64_t steps = traffic.dense_layer_steps + traffic.sparse_layer_steps;
  record["dense_step_share"] =
      steps > 0 ? static_cast<double>(traffic.dense_layer_steps) / static_cast<double>(steps) : 1.0;
  if (estimated_count > 0) record["estimated_error_rms"] = estimated_rms();
  if (lists.total() > 0) {
    record["lists_first"] = lists.first;
    record["lists_enlarged"] = lists.enlarged;
    record["lists_capped"] = lists.capped;
    record["lists_dense"] = lists.dense;
  }
  if (promise.pairs > 0) {
    const RateLimits limits = rate_limits(promise.violations, promise.pairs);
    record["eps"] = promise.eps;
    record["delta"] = promise.delta;
    record["audited_pairs"] = promise.pairs;
    record["audited_violation_rate"] = promise.rate();
    record["audited_violation_rate_upper_95"] = limits.upper;
  }
  if (audited_count > 0) {
    record["audited_error_rms"] = audited_rms();
    record["audited_error_max"] = audited_max;
    record["audited_heads"] = audited_count;
    if (certificate_pairs > 0) {
      record["certificate_coverage"] = static_cast<double>(certificate_covered) / static_cast<double>(certificate_pairs);
    }
  }
}

}  // namespace rarefy::cli
