#include "cpu/select/key_rows.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/select/key_rows.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using F32Vec = hn::Vec<F32>;
constexpr int32_t kQueryTile = 4;  // rows are read once per tile

HWY_INLINE F32Vec load(F32 d, const float* from) { return hn::LoadU(d, from); }
HWY_INLINE F32Vec load(F32 d, const hwy::bfloat16_t* from) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::bfloat16_t, F32>(), from));
}
HWY_INLINE F32Vec load(F32 d, const hwy::float16_t* from) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::float16_t, F32>(), from));
}
HWY_INLINE F32Vec load(F32 d, const uint8_t* from) {
  const hn::Rebind<int32_t, F32> di;
  return hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(hn::Rebind<uint8_t, F32>(), from)));
}

HWY_INLINE float to_f32(float value) { return value; }
HWY_INLINE float to_f32(hwy::bfloat16_t value) { return hwy::F32FromBF16(value); }
HWY_INLINE float to_f32(hwy::float16_t value) { return to_float(Float16{value.bits}); }
HWY_INLINE float to_f32(uint8_t value) { return static_cast<float>(value); }

template <typename T>
void dot_row_of(const float* q, int32_t num_queries, int32_t dim, const T* row, float* dots, int64_t dot_stride) {
  const F32 d;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  for (int32_t first = 0; first < num_queries; first += kQueryTile) {
    const int32_t tile = std::min(kQueryTile, num_queries - first);
    F32Vec sums[kQueryTile];
    for (auto& sum : sums) sum = hn::Zero(d);
    int32_t i = 0;
    for (; i + lanes <= dim; i += lanes) {
      const F32Vec values = load(d, row + i);
      for (int32_t query = 0; query < tile; ++query) {
        sums[query] = hn::MulAdd(values, hn::LoadU(d, q + int64_t{first + query} * dim + i), sums[query]);
      }
    }
    for (int32_t query = 0; query < tile; ++query) {
      float sum = hn::GetLane(hn::SumOfLanes(d, sums[query]));
      for (int32_t j = i; j < dim; ++j) sum += q[int64_t{first + query} * dim + j] * to_f32(row[j]);
      dots[(first + query) * dot_stride] = sum;
    }
  }
}

template <typename T>
void convert(const T* rows, int64_t row_stride, int32_t num_rows, int32_t dim, float* out) {
  const F32 d;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  for (int32_t row = 0; row < num_rows; ++row) {
    const T* from = rows + row * row_stride;
    float* to = out + int64_t{row} * dim;
    int32_t i = 0;
    for (; i + lanes <= dim; i += lanes) hn::StoreU(load(d, from + i), d, to + i);
    for (; i < dim; ++i) to[i] = to_f32(from[i]);
  }
}

void dot_row_simd(const float* q, int32_t num_queries, int32_t dim, const void* row, DType dtype, float* dots,
                  int64_t dot_stride) {
  switch (dtype) {
    case DType::f16: return dot_row_of(q, num_queries, dim, static_cast<const hwy::float16_t*>(row), dots, dot_stride);
    case DType::bf16: return dot_row_of(q, num_queries, dim, static_cast<const hwy::bfloat16_t*>(row), dots, dot_stride);
    case DType::u8: return dot_row_of(q, num_queries, dim, static_cast<const uint8_t*>(row), dots, dot_stride);
    default: return dot_row_of(q, num_queries, dim, static_cast<const float*>(row), dots, dot_stride);
  }
}

void rows_to_float_simd(const void* rows, DType dtype, int64_t row_stride, int32_t num_rows, int32_t dim, float* out) {
  switch (dtype) {
    case DType::f16: return convert(static_cast<const hwy::float16_t*>(rows), row_stride, num_rows, dim, out);
    case DType::bf16: return convert(static_cast<const hwy::bfloat16_t*>(rows), row_stride, num_rows, dim, out);
    default: return convert(static_cast<const float*>(rows), row_stride, num_rows, dim, out);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rarefy::cpu {

HWY_EXPORT(dot_row_simd);
HWY_EXPORT(rows_to_float_simd);

void dot_row(const float* q, int32_t num_queries, int32_t dim, const void* row, DType dtype, float* dots, int64_t dot_stride) {
  HWY_DYNAMIC_DISPATCH(dot_row_simd)(q, num_queries, dim, row, dtype, dots, dot_stride);
}

void rows_to_float(const void* rows, DType dtype, int64_t row_stride, int32_t num_rows, int32_t dim, float* out) {
  HWY_DYNAMIC_DISPATCH(rows_to_float_simd)(rows, dtype, row_stride, num_rows, dim, out);
}

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
