#include "cpu/select/centroids.h"

#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/select/centroids.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Up to 16 lanes: the smallest number of centroids.
using F32 = hn::CappedTag<float, 16>;

void centroid_dots_simd(const float* x, int32_t dim, const float* centroids, int32_t count, float* dots) {
  const F32 d;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  int32_t c = 0;
  for (; c + 2 * lanes <= count; c += 2 * lanes) {  // two sums in flight
    auto first = hn::Zero(d), second = hn::Zero(d);
    for (int32_t i = 0; i < dim; ++i) {
      const float* row = centroids + int64_t{i} * count + c;  // [count] f32
      const auto value = hn::Set(d, x[i]);
      first = hn::Add(first, hn::Mul(value, hn::LoadU(d, row)));
      second = hn::Add(second, hn::Mul(value, hn::LoadU(d, row + lanes)));
    }
    hn::StoreU(first, d, dots + c);
    hn::StoreU(second, d, dots + c + lanes);
  }
  for (; c + lanes <= count; c += lanes) {
    auto sum = hn::Zero(d);
    for (int32_t i = 0; i < dim; ++i) {
      sum = hn::Add(sum, hn::Mul(hn::Set(d, x[i]), hn::LoadU(d, centroids + int64_t{i} * count + c)));
    }
    hn::StoreU(sum, d, dots + c);
  }
  for (; c < count; ++c) {
    float sum = 0.0f;
    for (int32_t i = 0; i < dim; ++i) sum += x[i] * centroids[int64_t{i} * count + c];
    dots[c] = sum;
  }
}

int32_t nearest_centroid_simd(const float* x, int32_t dim, const float* centroids, const float* half_norms, int32_t count) {
  float dots[kMaxCentroids];
  centroid_dots_simd(x, dim, centroids, count, dots);
  int32_t best = 0;
  float smallest = std::numeric_limits<float>::infinity();
  for (int32_t c = 0; c < count; ++c) {
    const float distance = half_norms[c] - dots[c];
    if (distance < smallest) {
      smallest = distance;
      best = c;
    }
  }
  return best;
}

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rarefy::cpu {

HWY_EXPORT(centroid_dots_simd);
HWY_EXPORT(nearest_centroid_simd);

void centroid_dots(const float* x, int32_t dim, const float* centroids, int32_t count, float* dots) {
  HWY_DYNAMIC_DISPATCH(centroid_dots_simd)(x, dim, centroids, count, dots);
}

int32_t nearest_centroid(const float* x, int32_t dim, const float* centroids, const float* half_norms, int32_t count) {
  return HWY_DYNAMIC_DISPATCH(nearest_centroid_simd)(x, dim, centroids, half_norms, count);
}

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
