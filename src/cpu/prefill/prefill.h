// Causal prefill attention on the CPU: blocks of queries against tiles of keys with an online softmax. One entry per Highway
// target that is compiled in, best first.
#pragma once

#include <memory>
#include <span>

#include "rarefy/attention/prefill.h"
#include "rarefy/core/registry.h"

namespace rarefy::cpu {

std::span<const Implementation<PrefillProblem, std::shared_ptr<const PrefillKernel>>> prefill_implementations();

}  // namespace rarefy::cpu
