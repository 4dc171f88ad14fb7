#include "rarefy/core/device.h"

#include <omp.h>

#include <atomic>

namespace rarefy {
namespace {
std::atomic<int32_t> requested_threads{0};
}

void set_num_threads(int32_t num_threads) { requested_threads = num_threads > 0 ? num_threads : 0; }

int32_t num_threads() {
  if (omp_in_parallel() != 0) return 1;
  const int32_t requested = requested_threads;
  return requested > 0 ? requested : omp_get_max_threads();
}

}  // namespace rarefy
