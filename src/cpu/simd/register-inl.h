// Keeps a vector in a register. Included once per Highway target.
#if defined(RAREFY_CPU_SIMD_REGISTER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RAREFY_CPU_SIMD_REGISTER_INL_H_
#undef RAREFY_CPU_SIMD_REGISTER_INL_H_
#else
#define RAREFY_CPU_SIMD_REGISTER_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {

// GCC 12 repeats a load as the memory operand of every product that uses it, until loads are the limit, and puts additions off until
// their terms no longer fit the registers. Neither across this.
template <class V>
HWY_INLINE V in_register(V v) {
#if HWY_COMPILER_GCC_ACTUAL && HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
  asm("" : "+v"(v.raw));
#endif
  return v;
}

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
