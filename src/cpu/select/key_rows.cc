#include "cpu/select/key_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>

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
using I32 = hn::Rebind<int32_t, F32>;
using I32Vec = hn::Vec<I32>;
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
HWY_INLINE float to_f32(hwy::float16_t value) { return to_float(std::bit_cast<Float16>(value)); }
HWY_INLINE float to_f32(uint8_t value) { return static_cast<float>(value); }

#if HWY_TARGET != HWY_SCALAR

// Adds the 16-byte lanes of a vector.
template <class V>
HWY_INLINE hn::Vec<hn::FixedTag<hn::TFromV<V>, 4>> fold(V v) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  const hn::Half<hn::DFromV<V>> half;
  const hn::Half<decltype(half)> quarter;
  const auto sum = hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v));
  return hn::Add(hn::LowerHalf(quarter, sum), hn::UpperHalf(quarter, sum));
#elif HWY_TARGET == HWY_AVX2
  const hn::Half<hn::DFromV<V>> half;
  return hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v));
#else
  return v;
#endif
}

#endif  // HWY_SCALAR

// Adds up the elements of each vector. Four at once share their shuffles.
template <int32_t kQueries>
HWY_INLINE void sum_elements(const F32Vec (&sums)[kQueries], float* out) {  // [kQueries] f32
#if HWY_TARGET != HWY_SCALAR
  if constexpr (kQueries == 4) {
    const hn::FixedTag<float, 4> d;
    const auto a = fold(sums[0]), b = fold(sums[1]), c = fold(sums[2]), e = fold(sums[3]);
    const auto ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
    const auto ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
    hn::StoreU(hn::Add(hn::ConcatLowerLower(d, ce, ab), hn::ConcatUpperUpper(d, ce, ab)), d, out);
    return;
  }
#endif
  const F32 d;
  for (int32_t query = 0; query < kQueries; ++query) out[query] = hn::GetLane(hn::SumOfLanes(d, sums[query]));
}

// Sums of kQueries queries stay in registers while a row is read.
template <int32_t kQueries, typename T>
void dot_tile(const float* q, int32_t dim, const void* const* rows, int32_t num_rows, float* dots, int64_t dot_stride) {
  const F32 d;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  for (int32_t r = 0; r < num_rows; ++r) {
    const T* row = static_cast<const T*>(rows[r]);
    F32Vec sums[kQueries];
    for (auto& sum : sums) sum = hn::Zero(d);
    int32_t i = 0;
    for (; i + lanes <= dim; i += lanes) {
      const F32Vec values = load(d, row + i);
      for (int32_t query = 0; query < kQueries; ++query) {
        sums[query] = hn::MulAdd(values, hn::LoadU(d, q + int64_t{query} * dim + i), sums[query]);
      }
    }
    float totals[kQueries];
    sum_elements(sums, totals);
    for (int32_t query = 0; query < kQueries; ++query) {
      for (int32_t j = i; j < dim; ++j) totals[query] += q[int64_t{query} * dim + j] * to_f32(row[j]);
      dots[query * dot_stride + r] = totals[query];
    }
  }
}

float round_to_i16_simd(const float* values, int32_t count, int16_t* rounded) {
  constexpr float kLargest = 32767.0f;
  float largest = 0.0f;
  bool finite = true;
  for (int32_t i = 0; i < count; ++i) {
    finite = finite && std::isfinite(values[i]);
    largest = std::max(largest, std::abs(values[i]));
  }
  const float step = finite ? largest / kLargest : 0.0f;
  const float inverse = step > 0.0f && std::isfinite(1.0f / step) ? 1.0f / step : 0.0f;
  if (inverse == 0.0f) {
    std::fill_n(rounded, count, int16_t{0});
    return 0.0f;
  }
  for (int32_t i = 0; i < count; ++i) {
    rounded[i] = static_cast<int16_t>(std::clamp(std::nearbyint(values[i] * inverse), -kLargest, kLargest));
  }
  return step;
}

// Sums of the elements of four vectors at once share their shuffles.
template <int32_t kQueries>
HWY_INLINE void sum_elements(const I32Vec (&sums)[kQueries], int32_t* out,
                             int64_t stride) {  // [kQueries] i32; stride apart
#if HWY_TARGET != HWY_SCALAR
  if constexpr (kQueries == 4) {
    const hn::FixedTag<int32_t, 4> d;
    const auto a = fold(sums[0]), b = fold(sums[1]), c = fold(sums[2]), e = fold(sums[3]);
    const auto ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
    const auto ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
    HWY_ALIGN int32_t totals[4];
    hn::Store(hn::Add(hn::ConcatLowerLower(d, ce, ab), hn::ConcatUpperUpper(d, ce, ab)), d, totals);
    for (int32_t query = 0; query < kQueries; ++query) out[query * stride] = totals[query];
    return;
  }
#endif
  const I32 d;
  for (int32_t query = 0; query < kQueries; ++query) out[query * stride] = hn::GetLane(hn::SumOfLanes(d, sums[query]));
}

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3

constexpr int32_t kQuad = 4;

// Four rows for four queries: sixteen sums share their shuffles. Pre: dim is a multiple of 64.
void dot_nibble_quad(const int16_t* q, int32_t dim, const void* const* rows, int32_t* dots, int64_t dot_stride) {
  const int32_t half = dim / 2;
  const __m512i low_half = _mm512_set1_epi16(15);
  __m512i sums[kQuad][kQuad];  // [query][row]
#pragma GCC unroll 4
  for (auto& of_query : sums) {
#pragma GCC unroll 4
    for (auto& sum : of_query) sum = _mm512_setzero_si512();
  }
  for (int32_t i = 0; i < half; i += 32) {
    __m512i lower[kQuad], upper[kQuad];  // [query]
#pragma GCC unroll 4
    for (int32_t query = 0; query < kQuad; ++query) {
      const int16_t* at = q + int64_t{query} * dim + i;
      lower[query] = _mm512_loadu_si512(at);
      upper[query] = _mm512_loadu_si512(at + half);
    }
#pragma GCC unroll 4
    for (int32_t row = 0; row < kQuad; ++row) {
      const auto* from = static_cast<const uint8_t*>(rows[row]) + i;
      const __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      const __m512i low = _mm512_and_si512(bytes, low_half), high = _mm512_srli_epi16(bytes, 4);
#pragma GCC unroll 4
      for (int32_t query = 0; query < kQuad; ++query) {
        const __m512i products =
            _mm512_add_epi32(_mm512_madd_epi16(low, lower[query]), _mm512_madd_epi16(high, upper[query]));
        sums[query][row] = _mm512_add_epi32(sums[query][row], products);
      }
    }
  }
  __m512i rows_of[kQuad];  // of a query: every 16 bytes hold parts of the sums of rows 0 .. 3
#pragma GCC unroll 4
  for (int32_t query = 0; query < kQuad; ++query) {
    const auto& sum = sums[query];
    const __m512i pair01 = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[0], sum[1]), _mm512_unpackhi_epi32(sum[0], sum[1]));
    const __m512i pair23 = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[2], sum[3]), _mm512_unpackhi_epi32(sum[2], sum[3]));
    rows_of[query] = _mm512_add_epi32(_mm512_unpacklo_epi64(pair01, pair23), _mm512_unpackhi_epi64(pair01, pair23));
  }
  constexpr int kLowerLanes = 0x44, kUpperLanes = 0xee, kEvenLanes = 0x88, kOddLanes = 0xdd;
  const auto halves = [](__m512i a, __m512i b) HWY_ATTR {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, kLowerLanes), _mm512_shuffle_i32x4(a, b, kUpperLanes));
  };
  const __m512i first = halves(rows_of[0], rows_of[1]), second = halves(rows_of[2], rows_of[3]);
  alignas(64) int32_t totals[kQuad * kQuad];  // [query][row]
  _mm512_store_si512(totals, _mm512_add_epi32(_mm512_shuffle_i32x4(first, second, kEvenLanes),
                                              _mm512_shuffle_i32x4(first, second, kOddLanes)));
  for (int32_t query = 0; query < kQuad; ++query) std::copy_n(totals + kQuad * query, kQuad, dots + query * dot_stride);
}

#endif

template <int32_t kQueries>
void dot_nibble_tile(const int16_t* q, int32_t dim, const void* const* rows, int32_t num_rows, int32_t* dots,
                     int64_t dot_stride) {
  const I32 d32;
  const int32_t half = dim / 2;
  int32_t r = 0;
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  for (; kQueries == kQuad && dim % 64 == 0 && r + kQuad <= num_rows; r += kQuad)
    dot_nibble_quad(q, dim, rows + r, dots + r, dot_stride);
#endif
  for (; r < num_rows; ++r) {
    const auto* row = static_cast<const uint8_t*>(rows[r]);  // [half] bytes
    I32Vec sums[kQueries], more[kQueries];                   // `more` is what some instruction sets add elsewhere
    for (auto& sum : sums) sum = hn::Zero(d32);
    for (auto& sum : more) sum = hn::Zero(d32);
    int32_t i = 0;
#if HWY_TARGET != HWY_SCALAR
    const hn::Repartition<int16_t, I32> d16;
    const hn::Rebind<uint8_t, decltype(d16)> d8;
    const int32_t lanes = static_cast<int32_t>(hn::Lanes(d16));
    for (; i + lanes <= half; i += lanes) {
      const auto bytes = hn::PromoteTo(d16, hn::LoadU(d8, row + i));
      const auto low = hn::And(bytes, hn::Set(d16, 15)), high = hn::ShiftRight<4>(bytes);
      for (int32_t query = 0; query < kQueries; ++query) {
        const int16_t* at = q + int64_t{query} * dim + i;
        sums[query] = hn::ReorderWidenMulAccumulate(d32, low, hn::LoadU(d16, at), sums[query], more[query]);
        sums[query] = hn::ReorderWidenMulAccumulate(d32, high, hn::LoadU(d16, at + half), sums[query], more[query]);
      }
    }
#endif
    for (int32_t query = 0; query < kQueries; ++query) sums[query] = hn::Add(sums[query], more[query]);
    sum_elements(sums, dots + r, dot_stride);
    for (int32_t query = 0; query < kQueries && i < half; ++query) {
      const int16_t* at = q + int64_t{query} * dim;
      for (int32_t j = i; j < half; ++j)
        dots[query * dot_stride + r] += at[j] * (row[j] & 15) + at[half + j] * (row[j] >> 4);
    }
  }
}

void dot_nibble_rows_simd(const int16_t* q, int32_t num_queries, int32_t dim, const void* const* rows, int32_t num_rows,
                          int32_t* dots, int64_t dot_stride) {
  for (int32_t first = 0; first < num_queries; first += kQueryTile) {
    const int32_t tile = std::min(kQueryTile, num_queries - first);
    const auto run = tile == 1   ? &dot_nibble_tile<1>
                     : tile == 2 ? &dot_nibble_tile<2>
                     : tile == 3 ? &dot_nibble_tile<3>
                                 : &dot_nibble_tile<4>;
    run(q + int64_t{first} * dim, dim, rows, num_rows, dots + first * dot_stride, dot_stride);
  }
}

template <typename T>
void dot_rows_of(const float* q, int32_t num_queries, int32_t dim, const void* const* rows, int32_t num_rows, float* dots,
                 int64_t dot_stride) {
  for (int32_t first = 0; first < num_queries; first += kQueryTile) {
    const int32_t tile = std::min(kQueryTile, num_queries - first);
    const auto run = tile == 1   ? &dot_tile<1, T>
                     : tile == 2 ? &dot_tile<2, T>
                     : tile == 3 ? &dot_tile<3, T>
                                 : &dot_tile<4, T>;
    run(q + int64_t{first} * dim, dim, rows, num_rows, dots + first * dot_stride, dot_stride);
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

void dot_rows_simd(const float* q, int32_t num_queries, int32_t dim, const void* const* rows, int32_t num_rows, DType dtype,
                   float* dots, int64_t dot_stride) {
  const auto run = dtype == DType::f16    ? &dot_rows_of<hwy::float16_t>
                   : dtype == DType::bf16 ? &dot_rows_of<hwy::bfloat16_t>
                   : dtype == DType::u8   ? &dot_rows_of<uint8_t>
                                          : &dot_rows_of<float>;
  run(q, num_queries, dim, rows, num_rows, dots, dot_stride);
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

HWY_EXPORT(dot_rows_simd);
HWY_EXPORT(round_to_i16_simd);
HWY_EXPORT(dot_nibble_rows_simd);
HWY_EXPORT(rows_to_float_simd);

void dot_rows(const float* q, int32_t num_queries, int32_t dim, const void* const* rows, int32_t num_rows, DType dtype,
              float* dots, int64_t dot_stride) {
  HWY_DYNAMIC_DISPATCH(dot_rows_simd)(q, num_queries, dim, rows, num_rows, dtype, dots, dot_stride);
}

float round_to_i16(const float* values, int32_t count, int16_t* rounded) {
  return HWY_DYNAMIC_DISPATCH(round_to_i16_simd)(values, count, rounded);
}

void dot_nibble_rows(const int16_t* q, int32_t num_queries, int32_t dim, const void* const* rows, int32_t num_rows,
                     int32_t* dots, int64_t dot_stride) {
  HWY_DYNAMIC_DISPATCH(dot_nibble_rows_simd)(q, num_queries, dim, rows, num_rows, dots, dot_stride);
}

void rows_to_float(const void* rows, DType dtype, int64_t row_stride, int32_t num_rows, int32_t dim, float* out) {
  HWY_DYNAMIC_DISPATCH(rows_to_float_simd)(rows, dtype, row_stride, num_rows, dim, out);
}

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
