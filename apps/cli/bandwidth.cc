#include "bandwidth.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "rarefy/core/device.h"

namespace rarefy::cli {

int64_t eviction_bytes() {
  int64_t last_level = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE  // glibc; 0 or -1 where it is not known
  last_level = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  return std::max(int64_t{256} << 20, 2 * last_level);
}

double measure_read_bandwidth() {
  const int64_t num_words = std::max(int64_t{512} << 20, eviction_bytes()) / 8;
  std::vector<uint64_t> buffer(static_cast<size_t>(num_words), 1);
  double best = 0.0;
  uint64_t total = 0;
  for (int32_t pass = 0; pass < 4; ++pass) {
    const auto start = std::chrono::steady_clock::now();
#pragma omp parallel for schedule(static) reduction(+ : total) num_threads(num_threads())
    for (int64_t i = 0; i < num_words; ++i) total += buffer[static_cast<size_t>(i)];
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, static_cast<double>(num_words) * sizeof(uint64_t) / seconds);
  }
  return total > 0 ? best : 0.0;  // the sum is used, so that the reads are not optimised away
}

}  // namespace rarefy::cli
