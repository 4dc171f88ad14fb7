// 2^x for the softmax: x <= 0, -inf gives 0. For use inside foreach_target files only.
#if defined(RAREFY_CPU_SIMD_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RAREFY_CPU_SIMD_EXP_INL_H_
#undef RAREFY_CPU_SIMD_EXP_INL_H_
#else
#define RAREFY_CPU_SIMD_EXP_INL_H_
#endif

#include "hwy/highway.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float kLog2E = 1.44269504f;

// x = n + f with |f| <= 1/2. Adding 1.5 * 2^23 rounds to the integer n and leaves it in the low mantissa bits, from where it
// goes straight to an exponent. The polynomial (relative error 9.2e-8, fitted by reweighted least squares) is 1 at f = 0, so
// the largest token has weight exactly 1. NaN stays NaN: a product, not an addition of exponents, joins the two factors.
template <class D>
HWY_INLINE hn::Vec<D> exp2_nonpositive(D d, hn::Vec<D> x) {
  const hn::RebindToSigned<D> di;
  const auto magic = hn::Set(d, 12582912.0f);
  const auto shifted = hn::Add(x, magic);
  const auto f = hn::Sub(x, hn::Sub(shifted, magic));
  auto p = hn::Set(d, 0.00132647266f);
  p = hn::MulAdd(p, f, hn::Set(d, 0.00967151268f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.0555073375f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.240222421f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.693146978f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  // The low byte of the bits of 1.5 * 2^23 is 0: adding the bias 127 and shifting drops everything but n.
  const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::BitCast(di, shifted), hn::Set(di, 127))));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), hn::Mul(p, power));
}

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET != HWY_SCALAR

#endif
