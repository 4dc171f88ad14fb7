#include "cpu/select/hadamard.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/select/hadamard.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One stage by vectors of at most `half` values: sums and differences of values that lie `half` apart.
template <class D>
HWY_INLINE void add_pairs(D d, float* values, int32_t size, int32_t half) {
  const auto lanes = static_cast<int32_t>(hn::Lanes(d));
  for (int32_t begin = 0; begin < size; begin += 2 * half) {
    for (int32_t i = begin; i < begin + half; i += lanes) {
      const auto low = hn::LoadU(d, values + i), high = hn::LoadU(d, values + i + half);
      hn::StoreU(hn::Add(low, high), d, values + i);
      hn::StoreU(hn::Sub(low, high), d, values + i + half);
    }
  }
}

void hadamard_simd(float* values, int32_t size) {
  int32_t half = 1;
#if HWY_TARGET != HWY_SCALAR
  const hn::CappedTag<float, 16> d;
  const hn::Rebind<uint32_t, decltype(d)> du;
  const auto lanes = static_cast<int32_t>(hn::Lanes(d));
  if (size >= lanes) {  // both stages within 16 bytes: low + high and low - high, the latter where a sign is turned
    constexpr uint32_t kSign = 0x80000000u;
    const auto lane = hn::Iota(du, 0);
    const auto odd = hn::BitCast(d, hn::ShiftLeft<31>(lane));
    const auto upper = hn::BitCast(d, hn::And(hn::ShiftLeft<30>(lane), hn::Set(du, kSign)));
    for (int32_t i = 0; i < size; i += lanes) {
      auto v = hn::LoadU(d, values + i);
      v = hn::Add(hn::Shuffle2301(v), hn::Xor(v, odd));
      v = hn::Add(hn::Shuffle1032(v), hn::Xor(v, upper));
      hn::StoreU(v, d, values + i);
    }
    half = 4;
    for (; half < lanes; half *= 2) {
      if (half == 4) add_pairs(hn::CappedTag<float, 4>(), values, size, half);
      if (half == 8) add_pairs(hn::CappedTag<float, 8>(), values, size, half);
    }
    for (; half < size; half *= 2) add_pairs(d, values, size, half);
  }
#endif
  for (; half < size; half *= 2) add_pairs(hn::CappedTag<float, 1>(), values, size, half);
}

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rarefy::cpu {

HWY_EXPORT(hadamard_simd);

void hadamard(float* values, int32_t size) { HWY_DYNAMIC_DISPATCH(hadamard_simd)(values, size); }

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
