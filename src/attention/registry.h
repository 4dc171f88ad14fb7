// The ordered implementation lists of the attention operations: fastest first, the double-precision reference last. Plans
// choose from them; tests and benchmarks enumerate them. Immutable.
#pragma once

#include <memory>
#include <span>

#include "rarefy/attention/decode.h"
#include "rarefy/attention/merge.h"
#include "rarefy/attention/prefill.h"
#include "rarefy/core/registry.h"

namespace rarefy {

using DecodeImplementation = Implementation<DecodeProblem, std::shared_ptr<const DecodeKernel>>;
using PrefillImplementation = Implementation<PrefillProblem, std::shared_ptr<const PrefillKernel>>;
using MergeImplementation = Implementation<MergeProblem, MergeFunction>;

std::span<const DecodeImplementation> decode_implementations(DecodeOp op);
std::span<const PrefillImplementation> prefill_implementations();
std::span<const MergeImplementation> merge_implementations();

}  // namespace rarefy
