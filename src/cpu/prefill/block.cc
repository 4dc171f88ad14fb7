#include "cpu/prefill/block.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/round_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/prefill/block.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "cpu/simd/exp-inl.h"
#include "cpu/simd/loads-inl.h"
#include "cpu/simd/targets.h"
#include "hwy/contrib/math/math-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {

// Sums of the matrix kernel: 6 rows x 4 vectors fill 24 of the 32 registers of AVX-512 and NEON, 6 x 2 12 of AVX2's 16.
constexpr int32_t kRows = 6;
constexpr int32_t kColumnVectors = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON ? 4 : 2;
constexpr float kNegInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLn2 = 0.693147181f;
static_assert(kPrefillRows % kRows == 0);

// c[r][...] (+)= sum_k a[r][k] b[k][...] for kRows rows and kVectors vectors of columns:
// a [kRows, depth] f32, b [depth, kVectors * kLanes] f32, c [kRows, kVectors * kLanes] f32.
template <int32_t kVectors, bool kAdd>
HWY_INLINE void multiply_panel(const float* HWY_RESTRICT a, int64_t a_stride, const float* HWY_RESTRICT b, int64_t b_stride,
                               int32_t depth, float* HWY_RESTRICT c, int64_t c_stride) {
  const F32 d;
  VF sum[kRows][kVectors];
  for (int32_t r = 0; r < kRows; ++r) {
    for (int32_t v = 0; v < kVectors; ++v) sum[r][v] = kAdd ? hn::Load(d, c + r * c_stride + v * kLanes) : hn::Zero(d);
  }
  for (int32_t k = 0; k < depth; ++k) {
    VF column[kVectors];
    for (int32_t v = 0; v < kVectors; ++v) column[v] = hn::Load(d, b + k * b_stride + v * kLanes);
    for (int32_t r = 0; r < kRows; ++r) {
      const auto factor = hn::Set(d, a[r * a_stride + k]);
      for (int32_t v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(factor, column[v], sum[r][v]);
    }
  }
  for (int32_t r = 0; r < kRows; ++r) {
    for (int32_t v = 0; v < kVectors; ++v) hn::Store(sum[r][v], d, c + r * c_stride + v * kLanes);
  }
}

// c [rows, columns] f32 (+)= a [rows, depth] f32 times b [depth, columns] f32; rows a multiple of kRows.
template <bool kAdd>
HWY_NOINLINE void multiply(const float* a, int64_t a_stride, const float* b, int32_t columns, int32_t depth, float* c,
                           int32_t rows) {
  int32_t column = 0;
  for (; column + kColumnVectors * kLanes <= columns; column += kColumnVectors * kLanes) {
    for (int32_t r = 0; r < rows; r += kRows) {
      multiply_panel<kColumnVectors, kAdd>(a + r * a_stride, a_stride, b + column, columns, depth, c + r * columns + column,
                                           columns);
    }
  }
  for (; column < columns; column += kLanes) {
    for (int32_t r = 0; r < rows; r += kRows) {
      multiply_panel<1, kAdd>(a + r * a_stride, a_stride, b + column, columns, depth, c + r * columns + column, columns);
    }
  }
}

// Every 128-bit block of `v` to its own row of to [lanes / 4, 4] f32, rows `stride` floats apart.
template <class D>
HWY_INLINE void store_blocks(D d, hn::Vec<D> v, float* HWY_RESTRICT to, int64_t stride) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    hn::StoreU(v, d, to);
  } else {
    const hn::Half<D> half;
    store_blocks(half, hn::LowerHalf(half, v), to, stride);
    store_blocks(half, hn::UpperHalf(half, v), to + static_cast<int64_t>(hn::Lanes(d) / 8) * stride, stride);
  }
}

// Four keys, kLanes dimensions, to [kLanes, kKeyTile] f32: element (dimension, key) of the transposed tile.
HWY_INLINE void store_transposed(VF k0, VF k1, VF k2, VF k3, float* HWY_RESTRICT to) {
  const F32 d;
  const hn::Repartition<uint64_t, F32> d64;
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, k0, k1)),
             high01 = hn::BitCast(d64, hn::InterleaveUpper(d, k0, k1));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, k2, k3)),
             high23 = hn::BitCast(d64, hn::InterleaveUpper(d, k2, k3));
  constexpr int64_t kBlockStride = 4 * kKeyTile;
  store_blocks(d, hn::BitCast(d, hn::InterleaveLower(d64, low01, low23)), to, kBlockStride);
  store_blocks(d, hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23)), to + kKeyTile, kBlockStride);
  store_blocks(d, hn::BitCast(d, hn::InterleaveLower(d64, high01, high23)), to + 2 * kKeyTile, kBlockStride);
  store_blocks(d, hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23)), to + 3 * kKeyTile, kBlockStride);
}

// The keys as [head_dim, kKeyTile] f32, the values as [kKeyTile, head_dim] f32, both in tile order; zero before key `begin` of
// the tile and from `num_keys` on.
template <class Rows>
void unpack_tile(const PrefillBlock& block, int32_t first_key, int32_t begin, int32_t num_keys, float* HWY_RESTRICT keys,
                 float* HWY_RESTRICT values) {
  using Element = typename Rows::Element;
  const PagedKvView& kv = block.args->kv;
  const F32 d;
  const int32_t dim = kv.head_dim;
  const auto* pool_keys = static_cast<const Element*>(kv.keys);
  const auto* pool_values = static_cast<const Element*>(kv.values);
  for (int32_t key = 0; key < kKeyTile; key += 4) {
    const Element* row[4];
    bool present[4];
    for (int32_t j = 0; j < 4; ++j) {
      present[j] = key + j >= begin && key + j < num_keys;
      const int64_t offset = kv.row_offset(0, first_key + (present[j] ? key + j : begin), block.kv_head);
      row[j] = pool_keys + offset;
      const Element* value = pool_values + offset;
      float* to = values + static_cast<int64_t>(key + j) * dim;
      int32_t i = 0;
      for (; i + 2 * kLanes <= dim; i += 2 * kLanes) {
        VF first = hn::Zero(d), second = hn::Zero(d);
        if (present[j]) Rows::pair(value + i, first, second);
        hn::Store(first, d, to + i);
        hn::Store(second, d, to + i + kLanes);
      }
      if (i < dim) hn::Store(present[j] ? Rows::one(value + i) : hn::Zero(d), d, to + i);
    }
    int32_t i = 0;
    for (; i + 2 * kLanes <= dim; i += 2 * kLanes) {
      VF first[4], second[4];
      for (int32_t j = 0; j < 4; ++j) {
        first[j] = second[j] = hn::Zero(d);
        if (present[j]) Rows::pair(row[j] + i, first[j], second[j]);
      }
      store_transposed(first[0], first[1], first[2], first[3], keys + i * kKeyTile + key);
      store_transposed(second[0], second[1], second[2], second[3], keys + (i + kLanes) * kKeyTile + key);
    }
    if (i < dim) {
      VF last[4];
      for (int32_t j = 0; j < 4; ++j) last[j] = present[j] ? Rows::one(row[j] + i) : hn::Zero(d);
      store_transposed(last[0], last[1], last[2], last[3], keys + i * kKeyTile + key);
    }
  }
}

// scores [kKeyTile] f32 of one row (in units of ln 2) to weights; keys before `hidden` and from `visible` on get none. Updates maximum [1] f32 and
// denominator [1] f32 and rescales sums [dim] f32 where the maximum grew.
HWY_INLINE void soften_row(float* HWY_RESTRICT scores, int32_t hidden, int32_t visible, float soft_cap,
                           float* HWY_RESTRICT maximum, float* HWY_RESTRICT denominator, float* HWY_RESTRICT sums,
                           int32_t dim) {
  const F32 d;
  if (soft_cap > 0.0f) {
    // tanh works on natural units.
    const auto to_cap = hn::Set(d, kLn2 / soft_cap), from_cap = hn::Set(d, soft_cap * kLog2E);
    for (int32_t t = 0; t < kKeyTile; t += kLanes) {
      hn::Store(hn::Mul(from_cap, hn::Tanh(d, hn::Mul(hn::Load(d, scores + t), to_cap))), d, scores + t);
    }
  }
  for (int32_t t = 0; t < std::min(hidden, kKeyTile); ++t) scores[t] = kNegInfinity;
  for (int32_t t = std::max(visible, 0); t < kKeyTile; ++t) scores[t] = kNegInfinity;
  auto tile_maximum = hn::Set(d, kNegInfinity);
  for (int32_t t = 0; t < kKeyTile; t += kLanes) tile_maximum = hn::Max(tile_maximum, hn::Load(d, scores + t));
  const float largest = hn::GetLane(hn::MaxOfLanes(d, tile_maximum));
  auto total = hn::Load(d, denominator);
  if (largest > *maximum) {
    // The factor of the first tile is exp2(-inf) = 0.
    const auto factor = exp2_nonpositive(d, hn::Set(d, *maximum - largest));
    total = hn::Mul(total, factor);
    for (int32_t i = 0; i < dim; i += kLanes) hn::Store(hn::Mul(factor, hn::Load(d, sums + i)), d, sums + i);
    *maximum = largest;
  }
  // Padding rows and rows that see nothing of this tile may have no maximum yet.
  const auto reference = hn::Set(d, *maximum == kNegInfinity ? 0.0f : *maximum);
  for (int32_t t = 0; t < kKeyTile; t += kLanes) {
    const auto p = exp2_nonpositive(d, hn::Sub(hn::Load(d, scores + t), reference));
    hn::Store(p, d, scores + t);
    total = hn::Add(total, p);
  }
  hn::Store(total, d, denominator);
}

template <class Rows>
void run_typed_block(const PrefillBlock& block) {
  const F32 d;
  const PrefillProblem& problem = *block.problem;
  const PrefillArgs& args = *block.args;
  const int32_t dim = problem.head_dim;
  const int32_t group = problem.num_q_heads / problem.num_kv_heads;
  const int32_t num_rows = block.num_queries * group;
  const int32_t padded_rows = (num_rows + kRows - 1) / kRows * kRows;
  float* q = block.scratch;                                         // [padded_rows, head_dim] f32; tile order
  float* sums = q + int64_t{kPrefillRows} * dim;                    // [padded_rows, head_dim] f32; tile order
  float* keys = sums + int64_t{kPrefillRows} * dim;                 // [head_dim, kKeyTile] f32
  float* values = keys + int64_t{kKeyTile} * dim;                   // [kKeyTile, head_dim] f32
  float* scores = values + int64_t{kKeyTile} * dim;                 // [padded_rows, kKeyTile] f32
  float* denominators = scores + int64_t{kPrefillRows} * kKeyTile;  // [padded_rows, kLanes] f32
  float* maxima = denominators + int64_t{kPrefillRows} * kLanes;    // [padded_rows] f32

  for (int64_t i = 0; i < int64_t{padded_rows} * dim; i += kLanes) hn::Store(hn::Zero(d), d, sums + i);
  for (int64_t i = 0; i < int64_t{padded_rows} * kLanes; i += kLanes) hn::Store(hn::Zero(d), d, denominators + i);
  std::fill_n(maxima, padded_rows, kNegInfinity);
  std::fill_n(q + int64_t{num_rows} * dim, int64_t{padded_rows - num_rows} * dim, 0.0f);

  const auto row_index = [&](int32_t row) {
    return int64_t{block.first_query + row / group} * problem.num_q_heads + block.kv_head * group + row % group;
  };
  const auto factor = hn::Set(d, args.scale * kLog2E);
  for (int32_t row = 0; row < num_rows; ++row) {
    HWY_ALIGN float plain[256];  // [head_dim] f32
    const int64_t first = row_index(row) * dim;
    const float* from = plain;
    if (problem.q_dtype == DType::f32) {
      from = static_cast<const float*>(args.q) + first;
    } else {
      for (int32_t i = 0; i < dim; ++i) plain[i] = load_as_float(args.q, problem.q_dtype, first + i);
    }
    float* to = q + int64_t{row} * dim;
    int32_t i = 0;
    for (; i + 2 * kLanes <= dim; i += 2 * kLanes) {
      VF even, odd;
      Rows::pair_f32(from + i, even, odd);
      hn::Store(hn::Mul(factor, even), d, to + i);
      hn::Store(hn::Mul(factor, odd), d, to + i + kLanes);
    }
    if (i < dim) hn::Store(hn::Mul(factor, hn::LoadU(d, from + i)), d, to + i);
  }

  const int32_t first_position = args.kv.kv_lens[0] - args.num_new + block.first_query;
  const int32_t num_keys = first_position + block.num_queries;
  const int32_t window = problem.sliding_window > 0 ? problem.sliding_window : num_keys;
  // Tiles start at multiples of their size, whatever the block: a row's result does not depend on its block.
  const int32_t first_needed = std::max(0, first_position + 1 - window);
  for (int32_t key = first_needed / kKeyTile * kKeyTile; key < num_keys; key += kKeyTile) {
    unpack_tile<Rows>(block, key, std::max(0, first_needed - key), std::min(kKeyTile, num_keys - key), keys, values);
    multiply<false>(q, dim, keys, kKeyTile, dim, scores, padded_rows);
    for (int32_t row = 0; row < padded_rows; ++row) {
      const int32_t visible = first_position + std::min(row / group, block.num_queries - 1) + 1 - key;
      soften_row(scores + row * kKeyTile, visible - window, visible, problem.logit_soft_cap, maxima + row,
                 denominators + row * kLanes, sums + int64_t{row} * dim, dim);
    }
    multiply<true>(scores, kKeyTile, values, dim, kKeyTile, sums, padded_rows);
  }

  for (int32_t row = 0; row < num_rows; ++row) {
    const float denominator = hn::GetLane(hn::SumOfLanes(d, hn::Load(d, denominators + row * kLanes)));
    const auto inverse = hn::Set(d, 1.0f / denominator);
    HWY_ALIGN float plain[256];  // [head_dim] f32
    const float* from = sums + int64_t{row} * dim;
    const int64_t first = row_index(row) * dim;
    float* to = problem.out_dtype == DType::f32 ? static_cast<float*>(args.out) + first : plain;
    int32_t i = 0;
    for (; i + 2 * kLanes <= dim; i += 2 * kLanes) {
      Rows::store_pair(hn::Mul(inverse, hn::Load(d, from + i)), hn::Mul(inverse, hn::Load(d, from + i + kLanes)), to + i);
    }
    if (i < dim) hn::StoreU(hn::Mul(inverse, hn::Load(d, from + i)), d, to + i);
    if (problem.out_dtype != DType::f32) {
      round_row(plain, dim, problem.out_dtype,
                static_cast<char*>(args.out) + first * static_cast<int64_t>(size_of(problem.out_dtype)));
    }
    if (args.lse != nullptr) args.lse[row_index(row)] = maxima[row] * kLn2 + std::log(denominator);
  }
}

void run_block(const PrefillBlock& block) {
  switch (block.problem->kv_dtype) {
    case DType::f32: return run_typed_block<F32Rows>(block);
    case DType::f16: return run_typed_block<F16Rows>(block);
    default: return run_typed_block<Bf16Rows>(block);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET != HWY_SCALAR

#if HWY_ONCE
namespace rarefy::cpu {

int64_t prefill_scratch_floats(int32_t head_dim) {
  constexpr int64_t kMaxLanes = 16;
  return int64_t{2 * kPrefillRows + 2 * kKeyTile} * head_dim + int64_t{kPrefillRows} * (kKeyTile + kMaxLanes + 1);
}

std::span<const PrefillFunctions> prefill_functions() {
#define RAREFY_ENTRY(lower, UPPER) {"cpu_" #lower, HWY_##UPPER, N_##UPPER::run_block},
  static const PrefillFunctions table[] = {RAREFY_FOREACH_SIMD(RAREFY_ENTRY)};
#undef RAREFY_ENTRY
  return table;
}

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
