// What `perplexity` and `recall` share when they go through contexts and report arms. Results are kept by context (--resume),
// as an array with one object per arm that has its "counters".
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "arm_counters.h"
#include "evaluation.h"
#include "model_flags.h"

namespace rarefy::cli {

// One run over contexts.
struct ArmRun {
  std::string bench;  // the verb
  std::string file, set, resume;
  const ModelFlags* model = nullptr;
  std::string model_name;
  DType kv_dtype = DType::bf16;
  std::vector<Arm> arms;  // dense first
};

// Evaluates every context that --resume does not have, and gives each result to `take`, in order; what it returns is printed to
// standard error behind "context 1 of 4:". `options` are what else tells one run from another.
void run_contexts(const ArmRun& run, const nlohmann::json& options, const std::vector<std::string>& ids,
                  const std::function<nlohmann::json(size_t context, const std::string& label)>& evaluate,
                  const std::function<std::string(const nlohmann::json& result)>& take);

// The fields of a result line before and after the verb's own figures.
nlohmann::ordered_json begin_arm_record(const ArmRun& run, const Arm& arm);
std::string finish_arm_record(nlohmann::ordered_json& record, const ArmCounters& counters);

// Density, bytes, errors and time of every arm; then the resolved policies.
std::string cost_table(const std::vector<Arm>& arms, const std::vector<ArmCounters>& counters);
std::string policy_lines(const std::vector<Arm>& arms);

}  // namespace rarefy::cli
