// Where an operation runs, and in which order. The CPU backend runs a call to completion before it returns, so a Stream
// means something only for CUDA, where it is the caller's cudaStream_t as an opaque pointer (null = the default stream).
#pragma once

#include <cstdint>

namespace rarefy {

enum class DeviceKind : int32_t { cpu = 0, cuda = 1 };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int32_t index = 0;
};

struct Stream {
  void* native = nullptr;  // not a tensor: a cudaStream_t of the caller
};

// Threads the CPU backend may use; 0 means all. Process-wide, read at each call. Within a parallel region there is only one: work
// is not split twice.
void set_num_threads(int32_t num_threads);
int32_t num_threads();

}  // namespace rarefy
