// The part of the CUDA runtime that the backend and its tests use, for the emulated device. Memory is the host's; streams run at once.
#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <map>

#include "cuda/decode/params.h"
#include "cuda/merge/launch.h"
#include "tests/emulation/device.h"

namespace {

std::map<const char*, size_t> the_allocations;  // first byte and number of bytes

}  // namespace

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  constexpr size_t kAlign = 256;
  *pointer = std::aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign);
  if (*pointer == nullptr) return cudaErrorMemoryAllocation;
  the_allocations[static_cast<char*>(*pointer)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  the_allocations.erase(static_cast<char*>(pointer));
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void* at, int byte, size_t bytes) {
  std::memset(at, byte, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* at, int byte, size_t bytes, cudaStream_t) { return cudaMemset(at, byte, bytes); }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  *attributes = {};
  attributes->type = cudaMemoryTypeUnregistered;
  const auto after = the_allocations.upper_bound(static_cast<const char*>(pointer));
  if (after == the_allocations.begin()) return cudaSuccess;
  const auto& [first, bytes] = *std::prev(after);
  if (static_cast<const char*>(pointer) < first + bytes) attributes->type = cudaMemoryTypeDevice;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "emulated");
  properties->major = rarefy::emulation::model().compute_capability / 10;
  properties->minor = rarefy::emulation::model().compute_capability % 10;
  properties->multiProcessorCount = rarefy::emulation::model().multiprocessors;
  properties->sharedMemPerMultiprocessor = static_cast<size_t>(rarefy::emulation::model().shared_bytes);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
// Graphs are not emulated.
cudaError_t cudaStreamCreate(cudaStream_t*) { return cudaErrorNotSupported; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return cudaErrorNotSupported; }
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) { return cudaErrorNotSupported; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long) { return cudaErrorNotSupported; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaErrorNotSupported; }
cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaErrorNotSupported; }

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "error"; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the emulated device"; }

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
  constexpr int kReserved = 1024;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return value <= rarefy::emulation::model().shared_bytes - kReserved ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
  *clusters =
      static_cast<int>(config->attrs[config->numAttrs - 1].val.clusterDim.x) <= rarefy::emulation::model().max_cluster ? 1
                                                                                                                       : 0;
  return cudaSuccess;
}
// The decode kernel is the only one that is started in this way.
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  const auto start = reinterpret_cast<void (*)(rarefy::cuda::DecodeParams)>(const_cast<void*>(kernel));
  const auto& params = *static_cast<const rarefy::cuda::DecodeParams*>(arguments[0]);
  rarefy::emulation::run(*config, [&] { start(params); });
  return cudaSuccess;
}

namespace rarefy::cuda {

cudaError_t launch_merge(int32_t, const MergeArgs&, cudaStream_t) { return cudaErrorNotSupported; }

}  // namespace rarefy::cuda
