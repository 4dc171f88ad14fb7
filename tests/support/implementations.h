// Every implementation that this machine can run, by name, and plans that use exactly that one.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include "attention/registry.h"

namespace rarefy::test {

inline std::vector<std::string> decode_names(DecodeOp op, const DecodeProblem& problem) {
  std::vector<std::string> names;
  for (const auto& entry : decode_implementations(op)) {
    if (entry.device == DeviceKind::cpu && entry.supports(problem, Device{}).ok()) names.emplace_back(entry.name);
  }
  return names;
}

inline std::vector<std::string> prefill_names(const PrefillProblem& problem) {
  std::vector<std::string> names;
  for (const auto& entry : prefill_implementations()) {
    if (entry.device == DeviceKind::cpu && entry.supports(problem, Device{}).ok()) names.emplace_back(entry.name);
  }
  return names;
}

// RAREFY_FORCE_IMPL for the lifetime of the object.
class ForcedImplementation {
 public:
  explicit ForcedImplementation(const std::string& name) { setenv("RAREFY_FORCE_IMPL", name.c_str(), 1); }
  ~ForcedImplementation() { unsetenv("RAREFY_FORCE_IMPL"); }
  ForcedImplementation(const ForcedImplementation&) = delete;
  ForcedImplementation& operator=(const ForcedImplementation&) = delete;
};

inline Expected<DecodePlan> forced_plan(DecodeOp op, const DecodeProblem& problem, const std::string& name) {
  const ForcedImplementation forced(name);
  return DecodePlan::make(op, Device{}, problem);
}

inline Expected<PrefillPlan> forced_plan(const PrefillProblem& problem, const std::string& name) {
  const ForcedImplementation forced(name);
  return PrefillPlan::make(Device{}, problem);
}

}  // namespace rarefy::test
