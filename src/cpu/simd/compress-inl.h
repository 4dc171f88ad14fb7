// Moves the chosen lanes of 4-byte vectors to the front. Included once per Highway target.
#if defined(RAREFY_CPU_SIMD_COMPRESS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RAREFY_CPU_SIMD_COMPRESS_INL_H_
#undef RAREFY_CPU_SIMD_COMPRESS_INL_H_
#else
#define RAREFY_CPU_SIMD_COMPRESS_INL_H_
#endif

#include <array>
#include <bit>
#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_AVX2
// The chosen lanes' numbers under each of the 256 choices, four bits each. Highway 1.0.3 has such a table as a local variable, which GCC
// copies to the stack for every vector: three quarters of the time that candidates took.
constexpr std::array<uint32_t, 256> make_chosen_lanes() {
  std::array<uint32_t, 256> table{};
  for (uint32_t choice = 0; choice < 256; ++choice) {
    uint32_t to = 0;
    for (uint32_t lane = 0; lane < 8; ++lane) {
      if ((choice >> lane & 1u) != 0) table[choice] |= lane << (4 * to++);
    }
  }
  return table;
}
inline constexpr std::array<uint32_t, 256> kChosenLanes = make_chosen_lanes();
#endif

// One choice for several vectors. What lies behind the chosen lanes is unspecified.
template <class D>
class Compressor {
 public:
  int32_t count() const { return count_; }

#if HWY_TARGET == HWY_AVX2
  HWY_INLINE Compressor(D, hn::Mask<D> chosen) {
    const auto lanes = hn::VecFromMask(U32(), hn::RebindMask(U32(), chosen));
    const auto choice = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes.raw)));
    count_ = std::popcount(choice);
    lanes_ = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int32_t>(kChosenLanes[choice])),
                               _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
  }
  template <class D2>
  HWY_INLINE hn::Vec<D2> apply(D2 d, hn::Vec<D2> v) const {
    return hn::BitCast(d, hn::Vec<U32>{_mm256_permutevar8x32_epi32(hn::BitCast(U32(), v).raw, lanes_)});
  }

 private:
  using U32 = hn::RebindToUnsigned<D>;
  __m256i lanes_;
#else
  HWY_INLINE Compressor(D d, hn::Mask<D> chosen)
      : chosen_(chosen), count_(static_cast<int32_t>(hn::CountTrue(d, chosen))) {}
  template <class D2>
  HWY_INLINE hn::Vec<D2> apply(D2 d, hn::Vec<D2> v) const {
    return hn::Compress(v, hn::RebindMask(d, chosen_));
  }

 private:
  hn::Mask<D> chosen_;
#endif
  int32_t count_ = 0;
};

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
