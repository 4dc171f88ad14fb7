// The architectures this build has code for (CMake: CMAKE_CUDA_ARCHITECTURES), and which of them a device runs.
#pragma once

#include <cstdint>
#include <string_view>

#include "rarefy/core/device.h"
#include "rarefy/core/status.h"

namespace rarefy::cuda {

struct Architecture {
  int32_t capability;                 // 90 for sm_90 and sm_90a
  int32_t first_device, last_device;  // compute capabilities that run its code
  std::string_view decode_name, merge_name;
  bool was_run;  // the authors have run the tests on such a device
};

inline constexpr Architecture kArchitectures[] = {
    {90, 90, 90, "cuda_sm90_mma", "cuda_sm90", true},
    {89, 89, 89, "cuda_sm89_mma", "cuda_sm89", false},
    {80, 80, 89, "cuda_sm80_mma", "cuda_sm80", false},
};

// Ok if this build has the code and the device runs it; else which of the two fails.
Status check_architecture(const Architecture& architecture, Device device);
// Logs that nobody has run this code on such a device, where that is so.
void warn_if_never_run(const Architecture& architecture);

}  // namespace rarefy::cuda
