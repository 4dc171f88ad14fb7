// Times the merge of partial results alone: one line per case with microseconds, bytes and the share of the measured read bandwidth.
// A CUDA graph holds 16 launches, each on buffers of its own: where all of them exceed the L2 cache, parts come from device memory.
//
//   merge_time        num_rows 32 to 65,536, 2, 8 and 64 parts, head_dim 64, 128 and 256
#include "rarefy/attention/merge.h"
#include "timing.cuh"

namespace {

constexpr int kLaunches = 16;
constexpr size_t kMostBytes = size_t{4} << 30;  // of a launch's parts

}  // namespace

int main() {
  cudaStream_t stream;
  OK(cudaStreamCreate(&stream));
  Timer timer;
  const double bandwidth = print_device(stream, timer);
  for (int head_dim : {64, 128, 256}) {
    const auto plan = rarefy::MergePlan::make({rarefy::DeviceKind::cuda, 0}, {head_dim});
    check(plan.status());
    for (int parts : {2, 8, 64}) {
      for (int64_t rows : {32, 1024, 65536}) {
        const size_t row_floats = static_cast<size_t>(head_dim) + 1;
        const size_t floats = static_cast<size_t>(parts + 1) * static_cast<size_t>(rows) * row_floats;
        if (floats * sizeof(float) > kMostBytes) continue;
        std::vector<float*> buffers(kLaunches);  // [parts + 1, rows, head_dim] f32, then [parts + 1, rows] f32
        for (float*& buffer : buffers) {
          OK(cudaMalloc(&buffer, floats * sizeof(float)));
          fill_random<<<1024, 256, 0, stream>>>(reinterpret_cast<uint16_t*>(buffer), 2 * floats,
                                                1);  // floats in about (-2, 2)
        }
        OK(cudaStreamSynchronize(stream));
        const std::vector<float> times = graph_times(stream, timer, [&] {
          for (float* buffer : buffers) {
            float* lse = buffer + static_cast<size_t>(parts + 1) * static_cast<size_t>(rows * head_dim);
            check(plan->run({parts, rows, buffer, lse, buffer + parts * rows * head_dim, lse + parts * rows}, {stream}));
          }
        });
        const double us = times[times.size() / 2] / kLaunches, bytes = static_cast<double>(floats) * sizeof(float);
        std::printf(
            "merge head_dim=%d num_parts=%d num_rows=%lld: %.2f us (p10 %.2f p90 %.2f), %.3f MB, %.3f of the read "
            "bandwidth\n",
            head_dim, parts, static_cast<long long>(rows), us, times[times.size() / 10] / kLaunches,
            times[times.size() * 9 / 10] / kLaunches, bytes * 1e-6, bytes / us * 1e-6 / bandwidth);
        std::fflush(stdout);
        for (float* buffer : buffers) OK(cudaFree(buffer));
      }
    }
  }
  return 0;
}
