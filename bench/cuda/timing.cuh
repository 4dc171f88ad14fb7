// What the programs of this folder share: errors, time, and the read bandwidth that times are compared with.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define OK(call)                                                          \
  do {                                                                    \
    if (const cudaError_t error = (call); error != cudaSuccess) {         \
      std::fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(error)); \
      std::exit(1);                                                       \
    }                                                                     \
  } while (false)

namespace {

__global__ void fill_random(uint16_t* data, size_t count, uint32_t seed) {  // data [count] u16: bf16 in about (-2, 2)
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed;
    x ^= x >> 16, x *= 0x85ebca6bu, x ^= x >> 13, x *= 0xc2b2ae35u, x ^= x >> 16;
    data[i] = static_cast<uint16_t>((x & 0x807fu) | 0x3f00u | ((x >> 8) & 0x0080u));
  }
}

__global__ void read_all(const uint4* data, size_t count, uint32_t* sink) {  // data [count] 16 bytes, sink [1] u32
  uint32_t sum = 0;
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  for (; i + 3 * stride < count; i += 4 * stride) {
    const uint4 a = __ldg(data + i), b = __ldg(data + i + stride), c = __ldg(data + i + 2 * stride),
                d = __ldg(data + i + 3 * stride);
    sum ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
  }
  if (sum == 0x12345678u) *sink = sum;
}

// Of a rarefy::Status, which not every program here knows.
template <typename Status>
void check(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.to_string().c_str());
  std::exit(1);
}

struct Timer {
  cudaEvent_t begin, end;
  Timer() {
    OK(cudaEventCreate(&begin));
    OK(cudaEventCreate(&end));
  }
  template <typename F>
  std::vector<float> run(cudaStream_t stream, int repeats, F&& launch) {  // ascending, us
    std::vector<float> times;
    for (int i = 0; i < repeats + 3; ++i) {
      OK(cudaEventRecord(begin, stream));
      launch();
      OK(cudaEventRecord(end, stream));
      OK(cudaEventSynchronize(end));
      float ms = 0;
      OK(cudaEventElapsedTime(&ms, begin, end));
      if (i >= 3) times.push_back(ms * 1000.0f);
    }
    std::sort(times.begin(), times.end());
    return times;
  }
};

// Of a graph of what `launch` puts on the stream, as often as run() says.
template <typename F>
std::vector<float> graph_times(cudaStream_t stream, Timer& timer, F&& launch) {  // ascending, us
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  launch();
  OK(cudaStreamEndCapture(stream, &graph));
  OK(cudaGraphInstantiate(&replay, graph, 0));
  std::vector<float> times = timer.run(stream, 20, [&] { OK(cudaGraphLaunch(replay, stream)); });
  OK(cudaGraphExecDestroy(replay));
  OK(cudaGraphDestroy(graph));
  return times;
}

// Of device memory in sequence, TB/s.
double read_bandwidth(cudaStream_t stream, Timer& timer) {
  const size_t bytes = size_t{4} << 30;
  uint4* data = nullptr;
  uint32_t* sink = nullptr;
  OK(cudaMalloc(&data, bytes));
  OK(cudaMalloc(&sink, 4));
  fill_random<<<4096, 256, 0, stream>>>(reinterpret_cast<uint16_t*>(data), bytes / 2, 1);
  double bandwidth = 0;
  for (int blocks : {132 * 8, 132 * 16, 132 * 32}) {
    const std::vector<float> times =
        timer.run(stream, 10, [&] { read_all<<<blocks, 256, 0, stream>>>(data, bytes / 16, sink); });
    bandwidth = std::max(bandwidth, bytes / times[times.size() / 2] * 1e-6);
  }
  OK(cudaFree(data));
  OK(cudaFree(sink));
  return bandwidth;
}

// The first line of decode_time and merge_time; returns the bandwidth.
double print_device(cudaStream_t stream, Timer& timer) {
  const double bandwidth = read_bandwidth(stream, timer);
  cudaDeviceProp properties;
  OK(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, read bandwidth %.2f TB/s\n", properties.name, bandwidth);
  return bandwidth;
}

}  // namespace
