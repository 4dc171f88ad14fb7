// Starts the merge kernel.
#pragma once

#include <cuda_runtime_api.h>

#include "rarefy/attention/merge.h"

namespace rarefy::cuda {

cudaError_t launch_merge(int32_t head_dim, const MergeArgs& args, cudaStream_t stream);

}  // namespace rarefy::cuda
