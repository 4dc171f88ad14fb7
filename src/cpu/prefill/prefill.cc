#include "cpu/prefill/prefill.h"

namespace rarefy::cpu {

std::span<const Implementation<PrefillProblem, std::shared_ptr<const PrefillKernel>>> prefill_implementations() { return {}; }

}  // namespace rarefy::cpu
