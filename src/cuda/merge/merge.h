// Merging (out, lse) pairs on CUDA.
#pragma once

#include <span>

#include "rarefy/attention/merge.h"
#include "rarefy/core/registry.h"

namespace rarefy::cuda {

std::span<const Implementation<MergeProblem, MergeFunction>> merge_implementations();

}  // namespace rarefy::cuda
