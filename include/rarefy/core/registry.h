// One ordered list of implementations per operation, fastest first and the double-precision reference last.
//
// Each entry says whether it supports a problem and, if not, why. choose() returns the first that does. RAREFY_FORCE_IMPL
// narrows the list: `ref` for every operation, or `sparse_decode=ref,dense_decode=cpu_avx2`; a forced name that refuses or
// does not exist is an error, never a silent fallback. With RAREFY_VERBOSE=1 the choice and every refusal are logged.
//
// Lists are immutable tables made once (src/attention/registry.cc); reading them is thread-safe.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "rarefy/core/device.h"
#include "rarefy/core/log.h"
#include "rarefy/core/status.h"

namespace rarefy {

// The name RAREFY_FORCE_IMPL asks for this operation; empty if none.
std::string forced_implementation(std::string_view op);

template <typename Problem, typename Kernel>
struct Implementation {
  std::string_view name;  // stable: "cuda_sm90_mma", "cpu_avx3", "ref"
  DeviceKind device;
  Status (*supports)(const Problem&, Device);        // ok, or the reason for refusing
  Expected<Kernel> (*make)(const Problem&, Device);  // Pre: supports(problem, device).ok()
};

template <typename Problem, typename Kernel>
Expected<const Implementation<Problem, Kernel>*> choose(std::string_view op, Device device, const Problem& problem,
                                                        std::span<const Implementation<Problem, Kernel>> list) {
  const std::string forced = forced_implementation(op);
  std::string refusals;
  for (const auto& candidate : list) {
    if (candidate.device != device.kind) continue;
    if (!forced.empty() && candidate.name != forced) continue;
    const Status supported = candidate.supports(problem, device);
    if (supported.ok()) {
      if (verbose()) log_message(LogLevel::info, std::string(op) + ": using " + std::string(candidate.name) + refusals);
      return &candidate;
    }
    refusals += "; " + std::string(candidate.name) + " refuses: " + supported.message();
  }
  if (!forced.empty() && refusals.empty()) {
    std::string names;
    for (const auto& candidate : list) names += (names.empty() ? "" : ", ") + std::string(candidate.name);
    return Status::not_found(std::string(op) + ": RAREFY_FORCE_IMPL asks for '" + forced +
                             "', which this build and machine do not offer on this device; available: " + names);
  }
  if (refusals.empty()) return Status::unsupported(std::string(op) + ": no implementation for this device in this build");
  return Status::unsupported(std::string(op) + ": no implementation takes this problem" + refusals);
}

}  // namespace rarefy
