// Merging (out, lse) pairs in double precision on the host: the last entry of the list of merge implementations.
#pragma once

#include "rarefy/attention/merge.h"

namespace rarefy::ref {

Status merge(const MergeProblem& problem, const MergeArgs& args, Stream stream);

}  // namespace rarefy::ref
