#include "cpu/matmul/dot_rows.h"

#include <bit>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/matmul/dot_rows.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;

HWY_INLINE hn::Vec<F32> load(F32 d, const float* from) { return hn::LoadU(d, from); }
// bf16 widens to f32 by a shift, which is exact.
HWY_INLINE hn::Vec<F32> load(F32 d, const uint16_t* from) {
  const hn::RebindToUnsigned<F32> du;
  const hn::Rebind<uint16_t, F32> d16;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, from))));
}
HWY_INLINE float scalar(float value) { return value; }
HWY_INLINE float scalar(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// kW weight rows times kX activation rows: kW * kX independent chains, one accumulator a product.
template <int kW, int kX, typename Weight>
HWY_INLINE void block(const Weight* HWY_RESTRICT w, const float* HWY_RESTRICT x, int64_t in_dim, float* HWY_RESTRICT y,
                      int64_t out_dim) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<F32> sums[kW][kX];
  for (int n = 0; n < kW; ++n) {
    for (int m = 0; m < kX; ++m) sums[n][m] = hn::Zero(d);
  }
  int64_t k = 0;
  for (; k + lanes <= in_dim; k += lanes) {
    hn::Vec<F32> vx[kX];
    for (int m = 0; m < kX; ++m) vx[m] = hn::LoadU(d, x + m * in_dim + k);
    for (int n = 0; n < kW; ++n) {
      const auto vw = load(d, w + n * in_dim + k);
      for (int m = 0; m < kX; ++m) sums[n][m] = hn::MulAdd(vw, vx[m], sums[n][m]);
    }
  }
  for (int n = 0; n < kW; ++n) {
    for (int m = 0; m < kX; ++m) {
      float sum = hn::GetLane(hn::SumOfLanes(d, sums[n][m]));
      for (int64_t i = k; i < in_dim; ++i) sum += scalar(w[n * in_dim + i]) * x[m * in_dim + i];
      y[m * out_dim + n] = sum;
    }
  }
}

// 4 x 4 sums fill half of AVX-512's registers. One activation row reads 8 weight rows at once: that many streams keep
// enough loads in flight for a core to reach its share of the memory bandwidth.
template <int kW, typename Weight>
void all_x(const DotRowsArgs& args, int64_t row) {
  const Weight* w = static_cast<const Weight*>(args.weight) + row * args.in_dim;
  int64_t m = 0;
  for (; m + 4 <= args.num_rows; m += 4) {
    const float* x = args.x + m * args.in_dim;
    float* y = args.y + m * args.out_dim + row;
    if constexpr (kW == kDotRowsBlock) {
      block<4, 4>(w, x, args.in_dim, y, args.out_dim);
      block<4, 4>(w + 4 * args.in_dim, x, args.in_dim, y + 4, args.out_dim);
    } else {
      block<kW, 4>(w, x, args.in_dim, y, args.out_dim);
    }
  }
  for (; m < args.num_rows; ++m) {
    block<kW, 1>(w, args.x + m * args.in_dim, args.in_dim, args.y + m * args.out_dim + row, args.out_dim);
  }
}

template <typename Weight>
void typed_rows(const DotRowsArgs& args, int64_t first_row, int64_t last_row) {
  int64_t row = first_row;
  for (; row + kDotRowsBlock <= last_row; row += kDotRowsBlock) all_x<kDotRowsBlock, Weight>(args, row);
  for (; row < last_row; ++row) all_x<1, Weight>(args, row);
}

void dot_rows_any(const DotRowsArgs& args, int64_t first_row, int64_t last_row) {
  args.weight_is_bf16 ? typed_rows<uint16_t>(args, first_row, last_row) : typed_rows<float>(args, first_row, last_row);
}

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rarefy::cpu {

HWY_EXPORT(dot_rows_any);
void dot_rows(const DotRowsArgs& args, int64_t first_row, int64_t last_row) {
  HWY_DYNAMIC_DISPATCH(dot_rows_any)(args, first_row, last_row);
}

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
