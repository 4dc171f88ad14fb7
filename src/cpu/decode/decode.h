// Dense and sparse decode attention on the CPU: one driver, because dense is the list of all tokens. One entry per Highway
// target that is compiled in, best first; an entry refuses on a machine without its instructions.
//
// Work is split over (sequence, list, split of the list). The number of splits depends on the list's own length only and
// splits merge in ascending order, so a request gives the same bits whatever the batch and the number of threads.
#pragma once

#include <memory>
#include <span>

#include "rarefy/attention/decode.h"
#include "rarefy/core/registry.h"

namespace rarefy::cpu {

std::span<const Implementation<DecodeProblem, std::shared_ptr<const DecodeKernel>>> decode_implementations(DecodeOp op);

}  // namespace rarefy::cpu
