#include "cuda/host/architectures.h"

#include <algorithm>
#include <string>

#include "cuda/host/runtime.h"
#include "rarefy/core/log.h"

namespace rarefy::cuda {
namespace {

constexpr std::string_view kCompiled = RAREFY_CUDA_ARCHITECTURES;  // "80,89,90a"

bool is_compiled(int32_t capability) {
  const std::string wanted = std::to_string(capability);
  for (size_t begin = 0; begin <= kCompiled.size();) {
    const size_t end = std::min(kCompiled.find(',', begin), kCompiled.size());
    std::string_view entry = kCompiled.substr(begin, end - begin);
    entry = entry.substr(0, entry.find_first_not_of("0123456789"));  // 90a, 90-real
    if (entry == wanted) return true;
    begin = end + 1;
  }
  return false;
}

}  // namespace

Status check_architecture(const Architecture& architecture, Device device) {
  if (!is_compiled(architecture.capability)) {
    return Status::unsupported("this build has no code for sm_" + std::to_string(architecture.capability) + " (it has " +
                               std::string(kCompiled) + "); add it to CMAKE_CUDA_ARCHITECTURES");
  }
  RAREFY_ASSIGN_OR_RETURN(const DeviceFacts facts, device_facts(device.index));
  if (facts.compute_capability >= architecture.first_device && facts.compute_capability <= architecture.last_device)
    return {};
  return Status::unsupported("expected a device of compute capability " + std::to_string(architecture.first_device / 10) +
                             "." + std::to_string(architecture.first_device % 10) + ", got " + facts.name + " with " +
                             std::to_string(facts.compute_capability / 10) + "." +
                             std::to_string(facts.compute_capability % 10));
}

void warn_if_never_run(const Architecture& architecture) {
  if (architecture.was_run) return;
  log_message(LogLevel::warning,
              std::string(architecture.decode_name) +
                  ": compiled, but its authors have never run it on such a device; check results with audits");
}

}  // namespace rarefy::cuda
