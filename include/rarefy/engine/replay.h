// Replay: policies and stored IndexSets on captured queries, keys and values, compared with dense attention in double precision.
//
//   auto capture = *Capture::load("capture.safetensors");
//   auto arms = *replay(capture, {}, {*Policy::parse("50x")});
//   for (const ReplayRow& row : arms[0].rows) ... row.error, row.estimated_error ...
//
// The cache is filled up to each step's position, indexes are brought up to date as tokens come in, and every policy selects
// and attends as a session does. What it is compared with is computed from the rounded keys and values of the cache, once per
// step and layer for all arms. Pure function over its arguments; uses the library's threads.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "rarefy/attention/index_set.h"
#include "rarefy/engine/capture.h"
#include "rarefy/engine/stats.h"
#include "rarefy/select/policy.h"

namespace rarefy {

// Lists of one layer that were made elsewhere (engine/index_set_file.h): one batch row for each step of the capture.
struct LayerIndexSet {
  int32_t layer = 0;
  IndexSet set;  // num_lists: num_kv_heads or num_q_heads of the capture
};

struct ReplayOptions {
  std::vector<int32_t> layers = {};  // [num_replayed_layers] i32; of the capture; empty = all
  int32_t num_steps = 0;             // the first so many steps; 0 = all
  uint64_t seed = 0;                 // of token selection: seed, seed + 1, ... seed + num_seeds - 1
  int32_t num_seeds = 1;
  bool keep_sets = false;  // return the lists of the first seed
  // After every (step, layer); returning false cancels.
  std::function<bool(int64_t done, int64_t total)> progress = {};
};

// One query head of one (layer, step, seed).
struct ReplayRow {
  int32_t layer = 0, step = 0, head = 0;
  uint64_t seed = 0;
  int32_t num_selected = 0;      // tokens of its list; kv_len where attention was dense
  double error = 0.0;            // audited: |out - dense| / |dense|
  double exact_error = 0.0;      // the same of the exact best num_selected tokens (by largest probability over the group)
  double mass = 0.0;             // dense attention probability of the selected tokens
  double recall = 0.0;           // share of this head's exact best num_selected tokens that were selected
  double overlap = 0.0;          // Jaccard index of the list and the exact best num_selected tokens of the group
  double estimated_error = 0.0;  // out_rel_std; 0 where nothing was sampled
};

struct ReplayArm {
  std::string policy;                // resolved text; empty for stored sets
  std::vector<ReplayRow> rows;       // by step, layer, seed, head
  std::vector<Traffic> layers;       // [num_replayed_layers]
  Traffic traffic;                   // of all
  std::vector<LayerIndexSet> lists;  // with keep_sets; one for each replayed layer
};

// Arms in the order of `policies`, then those of `stored`, each of which has the lists of all replayed layers.
Expected<std::vector<ReplayArm>> replay(const Capture& capture, const ReplayOptions& options,
                                        const std::vector<Policy>& policies,
                                        const std::vector<std::vector<LayerIndexSet>>& stored = {});

}  // namespace rarefy
