#include "cpu/elementwise/elementwise.h"

#include <algorithm>
#include <cmath>

#include "rarefy/core/device.h"
#include "rarefy/core/dtype.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/elementwise/elementwise.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows (norms, rope, gates) or elements [first, last) of one call.
using F32 = hn::ScalableTag<float>;

// One row: `in` [dim] f32, `to` [dim] f32, which may be `in`.
HWY_INLINE void rms_norm_one(const float* in, const float* weight, float epsilon, int64_t dim, float* to) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t vector_end = dim - dim % lanes;
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= vector_end; i += 2 * lanes) {
    const auto v0 = hn::LoadU(d, in + i), v1 = hn::LoadU(d, in + i + lanes);
    sum0 = hn::MulAdd(v0, v0, sum0);
    sum1 = hn::MulAdd(v1, v1, sum1);
  }
  for (; i < vector_end; i += lanes) {
    const auto v = hn::LoadU(d, in + i);
    sum0 = hn::MulAdd(v, v, sum0);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  for (; i < dim; ++i) sum += in[i] * in[i];
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(dim) + epsilon);
  const auto vscale = hn::Set(d, scale);
  for (i = 0; i < vector_end; i += lanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, weight + i), hn::Mul(hn::LoadU(d, in + i), vscale)), d, to + i);
  }
  for (; i < dim; ++i) to[i] = weight[i] * (in[i] * scale);
}

void rms_norm_rows(const float* x, const float* weight, float epsilon, int64_t dim, float* out, int64_t first,
                   int64_t last) {
  for (int64_t row = first; row < last; ++row) rms_norm_one(x + row * dim, weight, epsilon, dim, out + row * dim);
}

void rms_norm_head_rows(const HeadNormArgs& args, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    for (int32_t head = 0; head < args.num_heads; ++head) {
      float* x = args.x + row * args.x_row_stride + head * args.x_head_stride;
      rms_norm_one(x, args.weight, args.epsilon, args.head_dim, x);
    }
  }
}

void rope_rows(const RopeArgs& args, int64_t first, int64_t last) {
  const F32 d;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  const int32_t half = args.rotary_dim / 2;
  const int64_t head_stride = args.x_head_stride > 0 ? args.x_head_stride : args.head_dim;
  for (int64_t row = first; row < last; ++row) {
    const float* cos = args.cos + row * half;
    const float* sin = args.sin + row * half;
    for (int32_t head = 0; head < args.num_heads; ++head) {
      const float* x = args.x + row * args.x_row_stride + head * head_stride;
      float* out = args.out + (row * args.num_heads + head) * args.head_dim;
      int32_t j = 0;
      for (; j + lanes <= half; j += lanes) {
        const auto c = hn::LoadU(d, cos + j), s = hn::LoadU(d, sin + j);
        const auto low = hn::LoadU(d, x + j), high = hn::LoadU(d, x + half + j);
        hn::StoreU(hn::MulSub(low, c, hn::Mul(high, s)), d, out + j);
        hn::StoreU(hn::MulAdd(high, c, hn::Mul(low, s)), d, out + half + j);
      }
      for (; j < half; ++j) {
        out[j] = x[j] * cos[j] - x[half + j] * sin[j];
        out[half + j] = x[half + j] * cos[j] + x[j] * sin[j];
      }
      std::copy(x + args.rotary_dim, x + args.head_dim, out + args.rotary_dim);
    }
  }
}

// 1 + exp(-x). exp(88) is the largest power below the overflow of f32; beyond it what is divided by this is below 1e-36 anyway.
template <class V>
HWY_INLINE V one_plus_exp_minus(F32 d, V x) {
  return hn::Add(hn::Set(d, 1.0f), hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0f))));
}

struct Silu {
  template <class V>
  HWY_INLINE V operator()(F32 d, V gate, V up) const {
    return hn::Mul(hn::Div(gate, one_plus_exp_minus(d, gate)), up);
  }
};

struct GeluTanh {
  template <class V>
  HWY_INLINE V operator()(F32 d, V gate, V up) const {
    const auto square = hn::Mul(gate, gate);
    const auto slope = hn::MulAdd(square, hn::Set(d, 2.0f * 0.7978845608f * 0.044715f), hn::Set(d, 2.0f * 0.7978845608f));
    return hn::Mul(hn::Div(gate, one_plus_exp_minus(d, hn::Mul(gate, slope))), up);
  }
};

struct SigmoidTimes {
  template <class V>
  HWY_INLINE V operator()(F32 d, V gate, V value) const {
    return hn::Div(value, one_plus_exp_minus(d, gate));
  }
};

// to = combine(gate, other): `gate` [dim] f32, `other` [dim] f32, `to` [dim] f32, which may be `other`.
template <class Combine>
HWY_INLINE void combine_row(const float* gate, const float* other, int64_t dim, float* to, const Combine& combine) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= dim; i += lanes) {
    hn::StoreU(combine(d, hn::LoadU(d, gate + i), hn::LoadU(d, other + i)), d, to + i);
  }
  if (i >= dim) return;
  // The same arithmetic for the rest, through buffers of one full vector.
  HWY_ALIGN float gate_tail[HWY_MAX_BYTES / sizeof(float)] = {};   // [lanes] f32
  HWY_ALIGN float other_tail[HWY_MAX_BYTES / sizeof(float)] = {};  // [lanes] f32
  std::copy(gate + i, gate + dim, gate_tail);
  std::copy(other + i, other + dim, other_tail);
  hn::Store(combine(d, hn::Load(d, gate_tail), hn::Load(d, other_tail)), d, gate_tail);
  std::copy(gate_tail, gate_tail + (dim - i), to + i);
}

void silu_mul_rows(const float* gate_up, int64_t dim, float* out, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const float* gate = gate_up + row * 2 * dim;
    combine_row(gate, gate + dim, dim, out + row * dim, Silu());
  }
}

void gelu_tanh_mul_rows(const float* gate_up, int64_t dim, float* out, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const float* gate = gate_up + row * 2 * dim;
    combine_row(gate, gate + dim, dim, out + row * dim, GeluTanh());
  }
}

void sigmoid_gate_rows(const SigmoidGateArgs& args, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    for (int32_t head = 0; head < args.num_heads; ++head) {
      const float* gate = args.gate + row * args.gate_row_stride + head * args.gate_head_stride;
      float* inout = args.inout + (row * args.num_heads + head) * args.head_dim;
      combine_row(gate, inout, args.head_dim, inout, SigmoidTimes());
    }
  }
}

void scale_range(float factor, float* inout, int64_t first, int64_t last) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto vector = hn::Set(d, factor);
  int64_t i = first;
  for (; i + lanes <= last; i += lanes) hn::StoreU(hn::Mul(hn::LoadU(d, inout + i), vector), d, inout + i);
  for (; i < last; ++i) inout[i] *= factor;
}

void soft_cap_range(float cap, float* inout, int64_t first, int64_t last) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto vcap = hn::Set(d, cap), inverse = hn::Set(d, 1.0f / cap);
  const auto capped = [&](auto value) { return hn::Mul(vcap, hn::Tanh(d, hn::Mul(value, inverse))); };
  int64_t i = first;
  for (; i + lanes <= last; i += lanes) hn::StoreU(capped(hn::LoadU(d, inout + i)), d, inout + i);
  if (i >= last) return;
  HWY_ALIGN float tail[HWY_MAX_BYTES / sizeof(float)] = {};  // [lanes] f32
  std::copy(inout + i, inout + last, tail);
  hn::Store(capped(hn::Load(d, tail)), d, tail);
  std::copy(tail, tail + (last - i), inout + i);
}

void add_range(const float* x, float* inout, int64_t first, int64_t last) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = first;
  for (; i + lanes <= last; i += lanes) hn::StoreU(hn::Add(hn::LoadU(d, inout + i), hn::LoadU(d, x + i)), d, inout + i);
  for (; i < last; ++i) inout[i] += x[i];
}

void round_to_bf16_range(const float* x, uint16_t* out, int64_t first, int64_t last) {
  const F32 d;
  const hn::RebindToUnsigned<F32> du;
  const hn::Rebind<uint16_t, F32> d16;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = first;
  for (; i + lanes <= last; i += lanes) {
    const auto value = hn::LoadU(d, x + i);
    const auto bits = hn::BitCast(du, value);
    const auto ties_to_even = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
    const auto rounded = hn::Add(bits, hn::Add(ties_to_even, hn::Set(du, 0x7fffu)));
    const auto quiet_nan = hn::Or(bits, hn::Set(du, 0x400000u));
    const auto chosen = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(value)), quiet_nan, rounded);
    hn::StoreU(hn::TruncateTo(d16, hn::ShiftRight<16>(chosen)), d16, out + i);
  }
  for (; i < last; ++i) out[i] = to_bfloat16(x[i]).bits;
}

const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rarefy::cpu {
namespace {

HWY_EXPORT(rms_norm_rows);
HWY_EXPORT(rope_rows);
HWY_EXPORT(rms_norm_head_rows);
HWY_EXPORT(silu_mul_rows);
HWY_EXPORT(gelu_tanh_mul_rows);
HWY_EXPORT(sigmoid_gate_rows);
HWY_EXPORT(scale_range);
HWY_EXPORT(soft_cap_range);
HWY_EXPORT(add_range);
HWY_EXPORT(round_to_bf16_range);
HWY_EXPORT(target_name);

// Below this many elements a second thread costs more than it saves (a fork and join is about 2 us).
constexpr int64_t kParallelElements = 32768;

// Calls body(first, last) over [0, count) in equal parts, one a thread.
template <typename Body>
void split(int64_t count, int64_t elements_each, const Body& body) {
  const int64_t work = count * elements_each;
  const int threads =
      static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(work / kParallelElements, count), 1, num_threads()));
  if (threads == 1) return body(0, count);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int part = 0; part < threads; ++part) body(count * part / threads, count * (part + 1) / threads);
}

}  // namespace

void rms_norm(const float* x, const float* weight, float epsilon, int64_t num_rows, int64_t dim, float* out) {
  split(num_rows, dim, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(rms_norm_rows)(x, weight, epsilon, dim, out, first, last);
  });
}

void rope(const RopeArgs& args) {
  split(args.num_rows, static_cast<int64_t>(args.num_heads) * args.head_dim, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(rope_rows)(args, first, last);
  });
}

void silu_mul(const float* gate_up, int64_t num_rows, int64_t dim, float* out) {
  split(num_rows, dim, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(silu_mul_rows)(gate_up, dim, out, first, last);
  });
}

void rms_norm_heads(const HeadNormArgs& args) {
  split(args.num_rows, static_cast<int64_t>(args.num_heads) * args.head_dim, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(rms_norm_head_rows)(args, first, last);
  });
}

void gelu_tanh_mul(const float* gate_up, int64_t num_rows, int64_t dim, float* out) {
  split(num_rows, dim, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(gelu_tanh_mul_rows)(gate_up, dim, out, first, last);
  });
}

void sigmoid_gate(const SigmoidGateArgs& args) {
  split(args.num_rows, static_cast<int64_t>(args.num_heads) * args.head_dim, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(sigmoid_gate_rows)(args, first, last);
  });
}

void scale(float factor, int64_t count, float* inout) {
  split(count, 1, [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(scale_range)(factor, inout, first, last); });
}

void soft_cap(float cap, int64_t count, float* inout) {
  split(count, 1, [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(soft_cap_range)(cap, inout, first, last); });
}

void add_row(const float* x, int64_t num_rows, int64_t dim, float* inout) {
  split(num_rows, dim, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) HWY_DYNAMIC_DISPATCH(add_range)(x, inout + row * dim, 0, dim);
  });
}

void add(const float* x, int64_t count, float* inout) {
  split(count, 1, [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(add_range)(x, inout, first, last); });
}

void round_to_bf16(const float* x, int64_t count, uint16_t* out) {
  split(count, 1, [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(round_to_bf16_range)(x, out, first, last); });
}

const char* simd_name() { return HWY_DYNAMIC_DISPATCH(target_name)(); }

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
