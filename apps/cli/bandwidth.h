// The memory read bandwidth of this machine, as a streaming sum over a buffer much larger than the caches sees it.
#pragma once

#include <cstdint>

namespace rarefy::cli {

// Bytes that leave nothing of what was read before in the last-level cache: twice that cache, at least 256 MiB. (A server's cache
// can be 480 MiB: a buffer of 256 MiB then stays in it, and its "memory" bandwidth is the cache's.)
int64_t eviction_bytes();

// How far ahead of its loads a pass over a buffer fetches, in bytes; 0 = not at all. Which is fastest depends on the machine: two cores of an
// Intel server with 300 MiB of last-level cache read 19, 20 and 26 GB/s, two of a Zen 3 28, 30 and 27. A bandwidth is that of the fastest.
inline constexpr int32_t kFetchAhead[] = {0, 1024, 4096};

// Memory that asks for huge pages: a streaming read of it is not slowed down by address translation.
class StreamBuffer {
 public:
  explicit StreamBuffer(int64_t bytes);  // fails with ExitCode::run_failed
  ~StreamBuffer();
  StreamBuffer(const StreamBuffer&) = delete;
  StreamBuffer& operator=(const StreamBuffer&) = delete;

  // Time of one pass over the buffer in us, with the threads of set_num_threads().
  double read_us(int32_t fetch_ahead = 0);
  int64_t bytes() const { return words_ * 8; }
  uint64_t checksum() const { return checksum_; }  // keeps the reads from being optimised away

 private:
  int64_t words_;
  uint64_t* data_;  // [words] u64
  uint64_t checksum_ = 0;
};

// Bytes per second; the best of a few passes. Takes about half a second, two with a large cache.
double measure_read_bandwidth();

}  // namespace rarefy::cli
