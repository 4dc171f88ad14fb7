// The closing table of a run, and the warning when a policy read more than it was asked to.
#pragma once

#include <string>
#include <string_view>

#include "rarefy/engine/generate.h"
#include "rarefy/engine/session.h"

namespace rarefy::cli {

// Speeds, resolved policy, density, bytes_ratio and labelled errors, one per line.
std::string run_table(const RunStats& prefill, const RunStats& decode);

// "median 0.08, 95 % 0.21, max 0.5"; "none" without values.
std::string error_text(const QuantileSketch& errors);

// What became of the lists of a policy with eps, and how its promise was kept.
std::string lists_text(const ListCounts& lists);
std::string promise_text(const PromiseCounts& promise);

std::string_view stop_reason_text(StopReason reason);  // "stop_token", as JSON has it

// Empty, or why less than 90 % of the sparsity asked for was reached. `kv_len` is the length at the end.
std::string sparsity_warning(const Policy& policy, const Traffic& traffic, int32_t kv_len);

}  // namespace rarefy::cli
