#include "bandwidth.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "failure.h"
#include "rarefy/core/device.h"

namespace rarefy::cli {
namespace {

constexpr int64_t kLineWords = 8;  // of a cache line

template <bool kFetch>
uint64_t sum_words(const uint64_t* data, int64_t words, int32_t fetch_ahead) {  // data [words] u64
  // Whole cache lines into eight sums: the loads, not the additions, set the pace.
  uint64_t sums[kLineWords] = {};
#pragma omp parallel for schedule(static) reduction(+ : sums) num_threads(num_threads())
  for (int64_t i = 0; i < words; i += kLineWords) {
    if constexpr (kFetch) __builtin_prefetch(reinterpret_cast<const char*>(data + i) + fetch_ahead, 0, 2);
    for (int64_t j = 0; j < kLineWords; ++j) sums[j] += data[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace

int64_t eviction_bytes() {
  int64_t last_level = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE  // glibc; 0 or -1 where it is not known
  last_level = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  return std::max(int64_t{256} << 20, 2 * last_level);
}

StreamBuffer::StreamBuffer(int64_t bytes) : words_(bytes / 64 * kLineWords) {
  void* memory =
      mmap(nullptr, static_cast<size_t>(this->bytes()), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail(ExitCode::run_failed, fmt::format("read bandwidth: no memory for {} bytes", bytes));
#ifdef MADV_HUGEPAGE
  static_cast<void>(madvise(memory, static_cast<size_t>(this->bytes()), MADV_HUGEPAGE));
#endif
  data_ = static_cast<uint64_t*>(memory);
#pragma omp parallel for schedule(static) num_threads(num_threads())
  for (int64_t i = 0; i < words_; ++i) data_[i] = static_cast<uint64_t>(i);
}

StreamBuffer::~StreamBuffer() { munmap(data_, static_cast<size_t>(bytes())); }

double StreamBuffer::read_us(int32_t fetch_ahead) {
  const auto start = std::chrono::steady_clock::now();
  checksum_ += fetch_ahead > 0 ? sum_words<true>(data_, words_, fetch_ahead) : sum_words<false>(data_, words_, 0);
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

double measure_read_bandwidth() {
  StreamBuffer buffer(std::max(int64_t{512} << 20, eviction_bytes()));
  double best = 0.0;
  for (int32_t pass = 0; pass < 4; ++pass) {
    for (const int32_t ahead : kFetchAhead)
      best = std::max(best, 1e6 * static_cast<double>(buffer.bytes()) / buffer.read_us(ahead));
  }
  return buffer.checksum() > 0 ? best : 0.0;
}

}  // namespace rarefy::cli
