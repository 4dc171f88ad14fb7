// The CUDA runtime's error codes as Status, and what the backend asks about devices.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <string_view>

#include "rarefy/core/device.h"
#include "rarefy/core/status.h"

namespace rarefy::cuda {

// Ok, or the call's name and what CUDA says.
Status to_status(cudaError_t error, std::string_view call);

struct DeviceFacts {
  int32_t compute_capability = 0;  // 90 for 9.0
  int32_t num_multiprocessors = 0;
  int32_t shared_bytes = 0;  // shared memory of a multiprocessor
  std::string name;
};

// Refuses a device that does not exist, with the number of devices that do.
Expected<DeviceFacts> device_facts(int32_t index);
// Ok if the calling thread's current device is `index`.
Status check_current_device(int32_t index);
// Ok if the pointer is memory that device `index` can read in place.
Status check_device_pointer(std::string_view what, const void* pointer, int32_t index);  // not a tensor: any argument

inline cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.native); }

}  // namespace rarefy::cuda

#define RAREFY_CUDA(call)                                                                                            \
  do {                                                                                                               \
    if (const cudaError_t error = (call); error != cudaSuccess) {                                                    \
      return ::rarefy::cuda::to_status(error, std::string_view(#call).substr(0, std::string_view(#call).find('('))); \
    }                                                                                                                \
  } while (false)
