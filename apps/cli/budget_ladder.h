// What `calibrate` measures: every full-attention layer under the same budgets, one after another, on the same text.
#pragma once

#include <string>
#include <vector>

#include "budget_allocation.h"
#include "channel_importance.h"
#include "passages.h"
#include "rarefy/engine/session.h"

namespace rarefy::cli {

// Sums of one layer at one budget.
struct LayerRung {
  Traffic traffic;
  double audited_squares = 0.0, estimated_squares = 0.0;  // of relative output errors, per head and step
  int64_t audited_count = 0, estimated_count = 0;
  std::vector<double> kv_head_squares;  // [num_kv_heads] f64; audited_squares by KV head

  void add(const RunStats& stats, int32_t layer, int32_t num_kv_heads);
  double audited_rms() const;
  double estimated_rms() const;
};

enum class ErrorSource { audited, estimated };

struct LadderOptions {
  Policy base;  // its total is replaced
  std::vector<double> densities;  // [num_budgets] f64; ascending
  uint64_t seed = 0;
  bool audit = true;
  ChannelImportance* channels = nullptr;  // nullable; takes in every passage
};

struct BudgetLadder {
  std::vector<int32_t> layers;                 // [num_layers] i32; those with full attention
  std::vector<double> densities;               // [num_budgets] f64
  std::vector<std::vector<LayerRung>> rungs;   // [num_layers][num_budgets]

  // One curve per layer, for the errors of `source`.
  std::vector<BudgetCurve> curves(ErrorSource source, int num_steps) const;
  // One curve per layer and KV head, for audited errors: what budgets per KV head, which policies do not have, could do.
  std::vector<BudgetCurve> kv_head_curves(int num_steps) const;
};

// `count` densities in equal ratios that make sense at a context of `kv_len` tokens: from 0.25 % (at least 16 tokens) to 25 %.
std::vector<double> ladder_densities(int32_t kv_len, int32_t count);

// The base policy with one budget for all layers; in tokens when the base is.
Policy with_density(const Policy& base, double density, int32_t kv_len);
// With a budget for each of `layers`; 1 = dense.
Policy with_densities(const Policy& base, const std::vector<int32_t>& layers, const std::vector<double>& densities,
                      int32_t kv_len);

// Adds a passage: its context is prefilled once and forked for every budget. Ctrl-C cancels.
void measure_passage(Engine& engine, const LadderOptions& options, const Passage& passage, const std::string& label,
                     BudgetLadder& ladder);

}  // namespace rarefy::cli
