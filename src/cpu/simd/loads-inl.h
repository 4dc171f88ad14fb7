// Rows of f32, f16 and bf16 as f32 vectors. A pair is two vectors of consecutive elements; what is first and second within
// it ("tile order") is up to the type: bf16 takes even and odd elements apart, which costs one shift and one mask. For use
// inside foreach_target files only.
#if defined(RAREFY_CPU_SIMD_LOADS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RAREFY_CPU_SIMD_LOADS_INL_H_
#undef RAREFY_CPU_SIMD_LOADS_INL_H_
#else
#define RAREFY_CPU_SIMD_LOADS_INL_H_
#endif

#include "hwy/highway.h"

// Highway 1.0.3 falls back to one-lane vectors on x86 without AVX2; the reference serves there.
#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using VF = hn::Vec<F32>;
using F32x4 = hn::FixedTag<float, 4>;
constexpr int32_t kLanes = HWY_MAX_BYTES / sizeof(float);

struct F32Rows {
  using Element = float;
  static HWY_INLINE VF round_weight(VF weight) { return weight; }
  // from [kLanes] f32; of the pairs [2 * kLanes]
  static HWY_INLINE VF one(const float* HWY_RESTRICT from) { return hn::LoadU(F32(), from); }
  static HWY_INLINE void pair(const float* HWY_RESTRICT from, VF& first, VF& second) {
    first = one(from);
    second = one(from + kLanes);
  }
  // The same split for a row that is f32 already, and back.
  static HWY_INLINE void pair_f32(const float* HWY_RESTRICT from, VF& first, VF& second) { pair(from, first, second); }
  static HWY_INLINE void store_pair(VF first, VF second, float* HWY_RESTRICT to) {  // to [2 * kLanes] f32
    hn::StoreU(first, F32(), to);
    hn::StoreU(second, F32(), to + kLanes);
  }
};

struct F16Rows : F32Rows {
  using Element = hwy::float16_t;
  static HWY_INLINE VF one(const Element* HWY_RESTRICT from) {
    return hn::PromoteTo(F32(), hn::LoadU(hn::Rebind<hwy::float16_t, F32>(), from));
  }
  static HWY_INLINE void pair(const Element* HWY_RESTRICT from, VF& first, VF& second) {
    first = one(from);
    second = one(from + kLanes);
  }
};

struct Bf16Rows {
  using Element = uint16_t;
  static HWY_INLINE VF round_weight(VF weight) { return weight; }
  static HWY_INLINE VF one(const Element* HWY_RESTRICT from) {
    const hn::RebindToUnsigned<F32> du;
    return hn::BitCast(F32(), hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(hn::Rebind<uint16_t, F32>(), from))));
  }
  static HWY_INLINE void pair(const Element* HWY_RESTRICT from, VF& even, VF& odd) {
    const hn::RebindToUnsigned<F32> du;
    const auto bits = hn::BitCast(du, hn::LoadU(hn::Repartition<uint16_t, F32>(), from));
    even = hn::BitCast(F32(), hn::ShiftLeft<16>(bits));
    odd = hn::BitCast(F32(), hn::And(bits, hn::Set(du, 0xffff0000u)));
  }
  static HWY_INLINE void pair_f32(const float* HWY_RESTRICT from, VF& even, VF& odd) {
    hn::LoadInterleaved2(F32(), from, even, odd);
  }
  static HWY_INLINE void store_pair(VF even, VF odd, float* HWY_RESTRICT to) {
    hn::StoreInterleaved2(even, odd, F32(), to);
  }
};

// Four horizontal sums at once: lane j of the result is the sum of vector j.
// The tag of half a vector is another type in Highway 1.0.3 than in 1.0.7, hence the end by number of lanes.
template <class D>
HWY_INLINE hn::Vec<F32x4> sum4_blocks(D, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return sum4_blocks(half, hn::Add(hn::UpperHalf(half, v), hn::LowerHalf(half, v)));
  }
}
// Half-way there: pairs of lanes of a and b in turns.
HWY_INLINE VF sum2(VF a, VF b) {
  const F32 d;
  return hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
}
HWY_INLINE hn::Vec<F32x4> sum4_of_pairs(VF ab, VF ce) {
  const F32 d;
  const hn::Repartition<uint64_t, F32> d64;
  const auto ab64 = hn::BitCast(d64, ab), ce64 = hn::BitCast(d64, ce);
  const auto low = hn::BitCast(d, hn::InterleaveLower(d64, ab64, ce64));
  const auto high = hn::BitCast(d, hn::InterleaveUpper(d64, ab64, ce64));
  return sum4_blocks(d, hn::Add(low, high));
}
HWY_INLINE hn::Vec<F32x4> sum4(VF a, VF b, VF c, VF e) { return sum4_of_pairs(sum2(a, b), sum2(c, e)); }

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET != HWY_SCALAR

#endif
