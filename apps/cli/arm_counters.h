// What an arm of an evaluation (dense, or one policy) read and how far it strayed, summed over contexts. Unlike RunStats it
// survives a restart: errors are kept as sums of squares, reported as root mean squares.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "rarefy/engine/stats.h"

namespace rarefy::cli {

struct ArmCounters {
  Traffic traffic;
  int64_t decode_tokens = 0;
  double decode_seconds = 0.0;
  int64_t estimated_count = 0;
  double estimated_squares = 0.0;
  int64_t audited_count = 0;
  double audited_squares = 0.0;
  double audited_max = 0.0;
  int64_t certificate_pairs = 0;
  int64_t certificate_covered = 0;
  ListCounts lists;
  PromiseCounts promise;

  void add(const RunStats& stats);
  void add(const ArmCounters& other);
  double estimated_rms() const;
  double audited_rms() const;

  nlohmann::json to_json() const;
  static ArmCounters from_json(const nlohmann::json& json);
  // Density, bytes_ratio and labelled errors, as results name them.
  void describe(nlohmann::ordered_json& record) const;
};

}  // namespace rarefy::cli
