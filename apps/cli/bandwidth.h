// The memory read bandwidth of this machine, as a streaming sum over a buffer much larger than the caches sees it.
#pragma once

namespace rarefy::cli {

// Bytes per second; the best of a few passes with the threads of set_num_threads(). Takes about half a second.
double measure_read_bandwidth();

}  // namespace rarefy::cli
