#include "bandwidth.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "rarefy/core/device.h"

namespace rarefy::cli {

double measure_read_bandwidth() {
  constexpr int64_t kWords = int64_t{64} << 20;  // 512 MiB
  std::vector<uint64_t> buffer(kWords, 1);
  double best = 0.0;
  uint64_t total = 0;
  for (int32_t pass = 0; pass < 4; ++pass) {
    const auto start = std::chrono::steady_clock::now();
#pragma omp parallel for schedule(static) reduction(+ : total) num_threads(num_threads())
    for (int64_t i = 0; i < kWords; ++i) total += buffer[static_cast<size_t>(i)];
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, static_cast<double>(kWords) * sizeof(uint64_t) / seconds);
  }
  return total > 0 ? best : 0.0;  // the sum is used, so that the reads are not optimised away
}

}  // namespace rarefy::cli
