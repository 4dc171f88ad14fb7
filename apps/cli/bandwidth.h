// The memory read bandwidth of this machine, as a streaming sum over a buffer much larger than the caches sees it.
#pragma once

#include <cstdint>

namespace rarefy::cli {

// Bytes that leave nothing of what was read before in the last-level cache: twice that cache, at least 256 MiB. (A server's cache
// can be 480 MiB: a buffer of 256 MiB then stays in it, and its "memory" bandwidth is the cache's.)
int64_t eviction_bytes();

// Bytes per second; the best of a few passes with the threads of set_num_threads(). Takes about half a second, two with a large cache.
double measure_read_bandwidth();

}  // namespace rarefy::cli
