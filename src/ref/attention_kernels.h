// The oracle as a backend: the last entry of every attention list (src/attention/registry.cc). Takes every valid problem.
#pragma once

#include "rarefy/attention/decode.h"
#include "rarefy/attention/prefill.h"

namespace rarefy::ref {

std::shared_ptr<const DecodeKernel> make_decode_kernel(DecodeOp op, const DecodeProblem& problem);
std::shared_ptr<const PrefillKernel> make_prefill_kernel(const PrefillProblem& problem);

}  // namespace rarefy::ref
