// The larger of two vectors, where NaN does not count. Included once per Highway target.
#if defined(RAREFY_CPU_SIMD_LARGER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RAREFY_CPU_SIMD_LARGER_INL_H_
#undef RAREFY_CPU_SIMD_LARGER_INL_H_
#else
#define RAREFY_CPU_SIMD_LARGER_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The larger of a value and the best so far, where NaN does not count.
template <class V>
HWY_INLINE V larger(V value, V best) {
#if HWY_ARCH_X86
  return hn::Max(value, best);  // returns the second operand for NaN
#else
  return hn::IfThenElse(hn::Gt(value, best), value, best);
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
