#include "cuda/host/runtime.h"

namespace rarefy::cuda {

Status to_status(cudaError_t error, std::string_view call) {
  if (error == cudaSuccess) return {};
  const std::string message =
      "CUDA: " + std::string(call) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
  switch (error) {
    case cudaErrorMemoryAllocation: return Status::resource_exhausted(message);
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
      return Status::unsupported(message + "; install a driver for this toolkit, or use the CPU");
    case cudaErrorInvalidDevice: return Status::invalid_argument(message);
    default: return Status::internal(message);
  }
}

Expected<DeviceFacts> device_facts(int32_t index) {
  int count = 0;
  if (Status status = to_status(cudaGetDeviceCount(&count), "cudaGetDeviceCount"); !status.ok()) {
    cudaGetLastError();  // not sticky: the next call starts clean
    return status;
  }
  if (index < 0 || index >= count) {
    return Status::invalid_argument("device: expected a CUDA device from 0 to " + std::to_string(count - 1) + ", got " +
                                    std::to_string(index));
  }
  cudaDeviceProp properties;
  RAREFY_CUDA(cudaGetDeviceProperties(&properties, index));
  return DeviceFacts{properties.major * 10 + properties.minor, properties.multiProcessorCount,
                     static_cast<int32_t>(properties.sharedMemPerMultiprocessor), properties.name};
}

Status check_current_device(int32_t index) {
  int current = 0;
  RAREFY_CUDA(cudaGetDevice(&current));
  if (current == index) return {};
  return Status::invalid_argument("device: the plan was made for CUDA device " + std::to_string(index) +
                                  ", the calling thread's current device is " + std::to_string(current) +
                                  "; call cudaSetDevice first");
}

Status check_device_pointer(std::string_view what, const void* pointer, int32_t index) {
  cudaPointerAttributes attributes{};
  RAREFY_CUDA(cudaPointerGetAttributes(&attributes, pointer));
  if (attributes.type == cudaMemoryTypeManaged) return {};
  if (attributes.type == cudaMemoryTypeDevice && attributes.device == index) return {};
  const std::string got =
      attributes.type == cudaMemoryTypeDevice ? "memory of device " + std::to_string(attributes.device) : "host memory";
  return Status::invalid_argument(std::string(what) + ": expected memory of CUDA device " + std::to_string(index) +
                                  ", got " + got);
}

}  // namespace rarefy::cuda
