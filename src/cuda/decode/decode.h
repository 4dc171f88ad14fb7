// Dense and sparse decode attention on CUDA: one kernel, because dense is the list of all tokens. What it takes:
// docs/kernels/sparse_decode.md.
#pragma once

#include <memory>
#include <span>

#include "rarefy/attention/decode.h"
#include "rarefy/core/registry.h"

namespace rarefy::cuda {

std::span<const Implementation<DecodeProblem, std::shared_ptr<const DecodeKernel>>> decode_implementations(DecodeOp op);

}  // namespace rarefy::cuda
