// Times the merge of partial results alone: one line per case with microseconds, bytes and the share of the measured read bandwidth.
// A CUDA graph holds 16 launches, each on buffers of its own: where all of them exceed the L2 cache, parts come from device memory.
//
//   merge_time        num_rows 32 to 65,536, 2, 8 and 64 parts, head_dim 64, 128 and 256
#include <cmath>

#include "rarefy/attention/merge.h"
#include "timing.cuh"

namespace {

constexpr int kLaunches = 16;
constexpr size_t kMostBytes = size_t{4} << 30;  // of a launch's parts

__global__ void fill_parts(float* data, size_t count) {  // data [count] f32 in [0, 1)
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    data[i] = static_cast<float>(static_cast<uint32_t>(i) * 2654435761u >> 8) * 0x1p-24f;
  }
}

}  // namespace

int main() {
  cudaStream_t stream;
  OK(cudaStreamCreate(&stream));
  Timer timer;
  const double bandwidth = print_device(stream, timer);
  for (int head_dim : {64, 128, 256}) {
    const auto plan = rarefy::MergePlan::make({rarefy::DeviceKind::cuda, 0}, {head_dim});
    if (!plan) return std::fprintf(stderr, "%s\n", plan.status().to_string().c_str()), 1;
    for (int parts : {2, 8, 64}) {
      for (int64_t rows : {32, 1024, 65536}) {
        const size_t row_floats = static_cast<size_t>(head_dim) + 1;
        const size_t floats = static_cast<size_t>(parts + 1) * static_cast<size_t>(rows) * row_floats;
        if (floats * sizeof(float) > kMostBytes) continue;
        std::vector<float*> buffers(kLaunches);  // [parts + 1, rows, head_dim] f32, then [parts + 1, rows] f32
        for (float*& buffer : buffers) {
          OK(cudaMalloc(&buffer, floats * sizeof(float)));
          fill_parts<<<1024, 256, 0, stream>>>(buffer, floats);
        }
        OK(cudaStreamSynchronize(stream));
        OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        for (float* buffer : buffers) {
          float* lse = buffer + static_cast<size_t>(parts + 1) * static_cast<size_t>(rows * head_dim);
          const rarefy::MergeArgs args = {parts, rows, buffer, lse, buffer + parts * rows * head_dim, lse + parts * rows};
          const rarefy::Status status = plan->run(args, {stream});
          if (!status.ok()) return std::fprintf(stderr, "%s\n", status.to_string().c_str()), 1;
        }
        cudaGraph_t graph;
        cudaGraphExec_t replay;
        OK(cudaStreamEndCapture(stream, &graph));
        OK(cudaGraphInstantiate(&replay, graph, 0));
        const std::vector<float> times = timer.run(stream, 20, [&] { OK(cudaGraphLaunch(replay, stream)); });
        const double us = times[times.size() / 2] / kLaunches, bytes = static_cast<double>(floats) * sizeof(float);
        std::printf(
            "merge head_dim=%d num_parts=%d num_rows=%lld: %.2f us (p10 %.2f p90 %.2f), %.3f MB, %.3f of the read "
            "bandwidth\n",
            head_dim, parts, static_cast<long long>(rows), us, times[times.size() / 10] / kLaunches,
            times[times.size() * 9 / 10] / kLaunches, bytes * 1e-6, bytes / us * 1e-6 / bandwidth);
        std::fflush(stdout);
        OK(cudaGraphExecDestroy(replay));
        OK(cudaGraphDestroy(graph));
        for (float* buffer : buffers) OK(cudaFree(buffer));
      }
    }
  }
  return 0;
}
