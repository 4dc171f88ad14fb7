// What `replay` says about its arms: a table, JSON lines, and an HTML page with plots. Every error is audited (compared with
// dense attention in double precision) but for the one labelled estimated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rarefy/engine/replay.h"
#include "statistics.h"

namespace rarefy::cli {

// One arm with its name, summed up.
struct ReplaySummary {
  std::string name;  // as the user wrote it, or the file of an index set
  bool stored = false;
  Policy policy;  // not of stored sets
  ReplayArm arm;

  struct Errors {
    double mean = 0.0, rms = 0.0, p50 = 0.0, p95 = 0.0, p99 = 0.0, max = 0.0;
  };
  Errors error, exact_error, estimated_error;
  std::vector<Errors> layer_error, layer_exact_error;                  // [num_replayed_layers]
  double mass = 0.0, recall = 0.0, overlap = 0.0, num_selected = 0.0;  // means
  int64_t certificate_pairs = 0, certificate_covered = 0;

  std::string selector() const { return stored ? "index set" : policy.dense ? "dense" : policy.index; }
  std::string spend() const { return stored || policy.dense ? "" : std::string(to_string(policy.spend)); }
};
ReplaySummary summarize(std::string name, bool stored, Policy policy, ReplayArm arm);

// What was replayed.
struct ReplayScope {
  std::vector<std::string> files;  // of the captures
  CaptureInfo info;
  std::vector<int32_t> layers;     // [num_replayed_layers] i32
  std::vector<int32_t> positions;  // [num_steps] i32; of the steps replayed, over all captures
  int32_t num_seeds = 1;

  std::string title() const;        // of the captures
  int32_t shortest_kv_len() const;  // over the steps
  int32_t longest_kv_len() const;
  std::string origin(const std::string& name) const {
    const auto found = info.origin.find(name);
    return found == info.origin.end() ? "" : found->second;
  }
};

std::string replay_table(const ReplayScope& scope, const std::vector<ReplaySummary>& arms);
std::string replay_json(const ReplayScope& scope, const ReplaySummary& arm);  // one line
std::string replay_html(const ReplayScope& scope, const std::vector<ReplaySummary>& arms);

}  // namespace rarefy::cli
