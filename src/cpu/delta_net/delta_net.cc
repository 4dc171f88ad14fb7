#include "cpu/delta_net/delta_net.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "rarefy/core/device.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/delta_net/delta_net.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes, which divide every width here.
using F32 = hn::CappedTag<float, 16>;

template <class V>
HWY_INLINE V silu(F32 d, V x) {
  // Beyond exp(88) the quotient is below 1e-36.
  const auto power = hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0f)));
  return hn::Div(x, hn::Add(hn::Set(d, 1.0f), power));
}

// --- Convolution ------------------------------------------------------------------------------------------------------

void conv_rows(const CausalConvArgs& args, int64_t first, int64_t last) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int32_t history = args.num_taps - 1;
  for (int64_t row = first; row < last; ++row) {
    const auto input = [&](int32_t tap) -> const float* {
      const int64_t at = row - history + tap;
      if (at >= 0) return args.x + at * args.x_row_stride;
      return args.before == nullptr ? nullptr : args.before + (at + history) * args.num_channels;
    };
    float* out = args.out + row * args.num_channels;
    std::fill_n(out, args.num_channels, 0.0f);
    for (int32_t tap = 0; tap < args.num_taps; ++tap) {
      const float* in = input(tap);
      if (in == nullptr) continue;
      const float* weight = args.weight + tap * args.num_channels;
      int64_t i = 0;
      for (; i + lanes <= args.num_channels; i += lanes) {
        hn::StoreU(hn::MulAdd(hn::LoadU(d, weight + i), hn::LoadU(d, in + i), hn::LoadU(d, out + i)), d, out + i);
      }
      for (; i < args.num_channels; ++i) out[i] += weight[i] * in[i];
    }
    int64_t i = 0;
    for (; i + lanes <= args.num_channels; i += lanes) hn::StoreU(silu(d, hn::LoadU(d, out + i)), d, out + i);
    for (; i < args.num_channels; ++i) out[i] = out[i] / (1.0f + std::exp(-out[i]));
  }
}

// --- Norms ------------------------------------------------------------------------------------------------------------

HWY_INLINE float sum_of_squares(F32 d, const float* x, int32_t dim) {
  const auto lanes = static_cast<int32_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  for (int32_t i = 0; i < dim; i += lanes) {
    const auto value = hn::LoadU(d, x + i);
    sum = hn::MulAdd(value, value, sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

void l2_normalise_one(float factor, int32_t dim, float* x) {
  const F32 d;
  const auto lanes = static_cast<int32_t>(hn::Lanes(d));
  const auto scale = hn::Set(d, factor / std::sqrt(sum_of_squares(d, x, dim) + 1e-6f));
  for (int32_t i = 0; i < dim; i += lanes) hn::StoreU(hn::Mul(scale, hn::LoadU(d, x + i)), d, x + i);
}

void gated_norm_rows(const GatedNormArgs& args, int64_t first, int64_t last) {
  const F32 d;
  const auto lanes = static_cast<int32_t>(hn::Lanes(d));
  for (int64_t row = first; row < last; ++row) {
    for (int32_t head = 0; head < args.num_heads; ++head) {
      float* inout = args.inout + (row * args.num_heads + head) * args.head_dim;
      const float* gate = args.gate + row * args.gate_row_stride + int64_t{head} * args.head_dim;
      const float mean = sum_of_squares(d, inout, args.head_dim) / static_cast<float>(args.head_dim);
      const auto scale = hn::Set(d, 1.0f / std::sqrt(mean + args.epsilon));
      for (int32_t i = 0; i < args.head_dim; i += lanes) {
        const auto normed = hn::Mul(hn::LoadU(d, args.weight + i), hn::Mul(scale, hn::LoadU(d, inout + i)));
        hn::StoreU(hn::Mul(normed, silu(d, hn::LoadU(d, gate + i))), d, inout + i);
      }
    }
  }
}

// --- Delta rule -------------------------------------------------------------------------------------------------------

// A matrix whose rows and columns may be any distance apart, so that it can be read transposed.
struct Matrix {
  const float* data;  // [rows, depth] f32
  int64_t row_stride, column_stride;
};

// kRows rows and kVectors vectors of columns of c += a b: `b` [depth, kVectors * lanes] f32, `c` [kRows, kVectors * lanes] f32.
template <int kRows, int kVectors>
HWY_INLINE void multiply_add_block(const Matrix& a, const float* HWY_RESTRICT b, int64_t b_stride, int32_t depth,
                                   float* HWY_RESTRICT c, int64_t c_stride) {
  const F32 d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<F32> sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::LoadU(d, c + r * c_stride + v * lanes);
  }
  for (int32_t k = 0; k < depth; ++k) {
    hn::Vec<F32> column[kVectors];
    for (int v = 0; v < kVectors; ++v) column[v] = hn::LoadU(d, b + k * b_stride + v * lanes);
    for (int r = 0; r < kRows; ++r) {
      const auto factor = hn::Set(d, a.data[r * a.row_stride + k * a.column_stride]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(factor, column[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[r][v], d, c + r * c_stride + v * lanes);
  }
}

// The same for any number of rows: `b` [depth, kVectors * lanes] f32, `c` [rows, kVectors * lanes] f32.
template <int kVectors>
HWY_INLINE void multiply_add_rows(const Matrix& a, const float* b, int64_t b_stride, int32_t rows, int32_t depth, float* c,
                                  int64_t c_stride) {
  int32_t r = 0;
  const auto from = [&](int32_t row) { return Matrix{a.data + row * a.row_stride, a.row_stride, a.column_stride}; };
  for (; r + 4 <= rows; r += 4) multiply_add_block<4, kVectors>(from(r), b, b_stride, depth, c + r * c_stride, c_stride);
  for (; r < rows; ++r) multiply_add_block<1, kVectors>(from(r), b, b_stride, depth, c + r * c_stride, c_stride);
}

// c += a b with `b` [depth, columns] f32, `c` [rows, columns] f32; columns a multiple of 16.
HWY_NOINLINE void multiply_add(const Matrix& a, const float* b, int64_t b_stride, int32_t rows, int32_t columns,
                               int32_t depth, float* c, int64_t c_stride) {
  const auto lanes = static_cast<int32_t>(hn::Lanes(F32()));
  int32_t column = 0;
  for (; column + 2 * lanes <= columns; column += 2 * lanes)
    multiply_add_rows<2>(a, b + column, b_stride, rows, depth, c + column, c_stride);
  for (; column < columns; column += lanes)
    multiply_add_rows<1>(a, b + column, b_stride, rows, depth, c + column, c_stride);
}

// to = factor * from: `from` [count] f32, `to` [count] f32, count a multiple of 16; `to` may be `from`.
HWY_INLINE void scaled_copy(float factor, const float* from, int64_t count, float* to) {
  const F32 d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto vector = hn::Set(d, factor);
  for (int64_t i = 0; i < count; i += lanes) hn::StoreU(hn::Mul(vector, hn::LoadU(d, from + i)), d, to + i);
}

// One head's part of DeltaRuleArgs from some row on.
struct HeadRows {
  const float *q, *k, *v;  // [num_rows, head_dim] f32; rows row_stride apart
  int64_t row_stride;
  const float *log_decay, *beta;  // [num_rows] f32; gate_stride apart
  int64_t gate_stride;
  const float* before;  // [key_dim, value_dim] f32; nullable = zeros
  float* after;         // [key_dim, value_dim] f32; may be `before`
  float* out;           // [num_rows, value_dim] f32; out_stride apart
  int64_t out_stride;
  int32_t key_dim, value_dim;
};

// `scratch` [delta_scratch_floats] f32. One token: the state is read once for S^T k and S^T q together, and once more, by then from the cache, to be updated.
HWY_NOINLINE void delta_step(const HeadRows& rows, int32_t row, float* HWY_RESTRICT scratch) {
  const F32 d;
  const auto lanes = static_cast<int32_t>(hn::Lanes(d));
  const float* q = rows.q + row * rows.row_stride;
  const float* k = rows.k + row * rows.row_stride;
  const float* v = rows.v + row * rows.row_stride;
  const float decay = std::exp(rows.log_decay[row * rows.gate_stride]), beta = rows.beta[row * rows.gate_stride];
  float* out = rows.out + row * rows.out_stride;
  float* delta = scratch;  // [value_dim] f32
  float product = 0.0f;    // q . k
  for (int32_t i = 0; i < rows.key_dim; ++i) product += q[i] * k[i];
  for (int32_t column = 0; column < rows.value_dim; column += lanes) {
    auto state_k = hn::Zero(d), state_q = hn::Zero(d);
    if (rows.before != nullptr) {
      for (int32_t i = 0; i < rows.key_dim; ++i) {
        const auto state = hn::LoadU(d, rows.before + int64_t{i} * rows.value_dim + column);
        state_k = hn::MulAdd(hn::Set(d, k[i]), state, state_k);
        state_q = hn::MulAdd(hn::Set(d, q[i]), state, state_q);
      }
    }
    const auto vdecay = hn::Set(d, decay);
    const auto difference = hn::NegMulAdd(vdecay, state_k, hn::LoadU(d, v + column));
    const auto change = hn::Mul(hn::Set(d, beta), difference);
    hn::StoreU(change, d, delta + column);
    hn::StoreU(hn::MulAdd(hn::Set(d, product), change, hn::Mul(vdecay, state_q)), d, out + column);
  }
  for (int32_t i = 0; i < rows.key_dim; ++i) {
    const int64_t at = int64_t{i} * rows.value_dim;
    const auto key = hn::Set(d, k[i]), vdecay = hn::Set(d, decay);
    for (int32_t column = 0; column < rows.value_dim; column += lanes) {
      const auto state = rows.before != nullptr ? hn::LoadU(d, rows.before + at + column) : hn::Zero(d);
      hn::StoreU(hn::MulAdd(key, hn::LoadU(d, delta + column), hn::Mul(vdecay, state)), d, rows.after + at + column);
    }
  }
}

// Rows [first, first + n) at once; n <= kDeltaChunk. `scratch` [delta_scratch_floats] f32
HWY_NOINLINE void delta_chunk(const HeadRows& rows, int64_t first, int32_t n, float* HWY_RESTRICT scratch) {
  const int32_t key_dim = rows.key_dim, value_dim = rows.value_dim;
  float* keys_t = scratch;                                // [key_dim, kDeltaChunk] f32
  float* kk = keys_t + int64_t{key_dim} * kDeltaChunk;    // [n, kDeltaChunk] f32; k_i . k_j
  float* qk = kk + kDeltaChunk * kDeltaChunk;             // [n, kDeltaChunk] f32; q_i . k_j
  float* news = qk + kDeltaChunk * kDeltaChunk;           // [n, value_dim] f32; N
  float* keys = news + int64_t{kDeltaChunk} * value_dim;  // [n, key_dim] f32; exp(G_n - G_i) k_i
  float* sums = keys + int64_t{kDeltaChunk} * key_dim;    // [n] f32; G
  const float* q = rows.q + first * rows.row_stride;
  const float* k = rows.k + first * rows.row_stride;
  const float* v = rows.v + first * rows.row_stride;
  const float* beta = rows.beta + first * rows.gate_stride;
  float* out = rows.out + first * rows.out_stride;

  double total = 0.0;
  for (int32_t i = 0; i < n; ++i) {
    total += rows.log_decay[(first + i) * rows.gate_stride];
    sums[i] = static_cast<float>(total);
  }
  std::fill_n(keys_t, int64_t{key_dim} * kDeltaChunk, 0.0f);
  for (int32_t i = 0; i < n; ++i) {
    for (int32_t j = 0; j < key_dim; ++j) keys_t[int64_t{j} * kDeltaChunk + i] = k[i * rows.row_stride + j];
  }
  std::fill_n(kk, 2 * kDeltaChunk * kDeltaChunk, 0.0f);
  const Matrix q_rows{q, rows.row_stride, 1}, k_rows{k, rows.row_stride, 1};
  multiply_add(k_rows, keys_t, kDeltaChunk, n, kDeltaChunk, key_dim, kk, kDeltaChunk);
  multiply_add(q_rows, keys_t, kDeltaChunk, n, kDeltaChunk, key_dim, qk, kDeltaChunk);
  for (int32_t i = 0; i < n; ++i) {
    for (int32_t j = 0; j <= i; ++j) {
      const float decay = std::exp(sums[i] - sums[j]);
      kk[i * kDeltaChunk + j] *= -beta[i * rows.gate_stride] * decay;
      qk[i * kDeltaChunk + j] *= decay;
    }
  }

  // out and N start with what the state before contributes.
  for (int32_t i = 0; i < n; ++i) {
    std::fill_n(out + i * rows.out_stride, value_dim, 0.0f);
    std::fill_n(news + int64_t{i} * value_dim, value_dim, 0.0f);
  }
  if (rows.before != nullptr) {
    multiply_add(q_rows, rows.before, value_dim, n, value_dim, key_dim, out, rows.out_stride);
    multiply_add(k_rows, rows.before, value_dim, n, value_dim, key_dim, news, value_dim);
  }
  for (int32_t i = 0; i < n; ++i) {
    const float decay = std::exp(sums[i]), strength = beta[i * rows.gate_stride];
    scaled_copy(decay, out + i * rows.out_stride, value_dim, out + i * rows.out_stride);
    float* row = news + int64_t{i} * value_dim;
    for (int32_t j = 0; j < value_dim; ++j) row[j] = strength * (v[i * rows.row_stride + j] - decay * row[j]);
    // Forward substitution: row i takes the finished rows before it.
    multiply_add({kk + i * kDeltaChunk, kDeltaChunk, 1}, news, value_dim, 1, value_dim, i, row, value_dim);
  }
  for (int32_t i = 0; i < n; ++i) {
    multiply_add({qk + i * kDeltaChunk, kDeltaChunk, 1}, news, value_dim, 1, value_dim, i + 1, out + i * rows.out_stride,
                 rows.out_stride);
  }

  const float last = sums[n - 1];
  for (int32_t i = 0; i < n; ++i) {
    scaled_copy(std::exp(last - sums[i]), k + i * rows.row_stride, key_dim, keys + int64_t{i} * key_dim);
  }
  const int64_t state_floats = int64_t{key_dim} * value_dim;
  if (rows.before != nullptr) {
    scaled_copy(std::exp(last), rows.before, state_floats, rows.after);
  } else {
    std::fill_n(rows.after, state_floats, 0.0f);
  }
  multiply_add({keys, 1, key_dim}, news, value_dim, key_dim, value_dim, n, rows.after, value_dim);
}

int64_t delta_scratch_floats(int32_t key_dim, int32_t value_dim) {
  return int64_t{2 * kDeltaChunk} * key_dim + int64_t{2} * kDeltaChunk * kDeltaChunk + int64_t{kDeltaChunk} * value_dim +
         kDeltaChunk;
}

// `scratch` [delta_scratch_floats] f32
void delta_head(const DeltaRuleArgs& args, int32_t head, float* scratch) {
  const int64_t state_floats = int64_t{args.key_head_dim} * args.value_head_dim;
  const int32_t key_head = head / (args.num_value_heads / args.num_key_heads);
  HeadRows rows;
  rows.q = args.q + int64_t{key_head} * args.key_head_dim;
  rows.k = args.k + int64_t{key_head} * args.key_head_dim;
  rows.v = args.v + int64_t{head} * args.value_head_dim;
  rows.row_stride = args.row_stride;
  rows.log_decay = args.log_decay + head;
  rows.beta = args.beta + head;
  rows.gate_stride = args.num_value_heads;
  rows.before = args.before == nullptr ? nullptr : args.before + head * state_floats;
  rows.after = args.after + head * state_floats;
  rows.out = args.out + int64_t{head} * args.value_head_dim;
  rows.out_stride = int64_t{args.num_value_heads} * args.value_head_dim;
  rows.key_dim = args.key_head_dim;
  rows.value_dim = args.value_head_dim;
  for (int64_t row = 0; row < args.num_rows;) {
    const auto left = static_cast<int32_t>(std::min<int64_t>(kDeltaChunk, args.num_rows - row));
    if (left >= kMinDeltaChunk) {
      delta_chunk(rows, row, left, scratch);
      row += left;
    } else {
      delta_step(rows, static_cast<int32_t>(row), scratch);
      ++row;
    }
    rows.before = rows.after;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rarefy::cpu {
namespace {

HWY_EXPORT(conv_rows);
HWY_EXPORT(l2_normalise_one);
HWY_EXPORT(gated_norm_rows);
HWY_EXPORT(delta_scratch_floats);
HWY_EXPORT(delta_head);

// Below this many elements a second thread costs more than it saves (a fork and join is about 2 us).
constexpr int64_t kParallelElements = 32768;

int threads_for(int64_t elements, int64_t parts) {
  return static_cast<int>(std::clamp<int64_t>(std::min(elements / kParallelElements, parts), 1, num_threads()));
}

}  // namespace

void causal_conv_silu(const CausalConvArgs& args) {
  const int threads = threads_for(args.num_rows * args.num_channels, args.num_rows);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int part = 0; part < threads; ++part) {
    HWY_DYNAMIC_DISPATCH(conv_rows)(args, args.num_rows * part / threads, args.num_rows * (part + 1) / threads);
  }
  // The last inputs, oldest first. Row i of `after` comes from at or behind row i of `before`: one pass in order is safe.
  const int32_t history = args.num_taps - 1;
  for (int32_t i = 0; i < history; ++i) {
    const int64_t at = args.num_rows - history + i;
    float* to = args.after + i * args.num_channels;
    const auto bytes = static_cast<size_t>(args.num_channels) * sizeof(float);
    if (at >= 0) {
      std::memcpy(to, args.x + at * args.x_row_stride, bytes);
    } else if (args.before == nullptr) {
      std::memset(to, 0, bytes);
    } else {
      std::memmove(to, args.before + (at + history) * args.num_channels, bytes);
    }
  }
}

void l2_normalise_heads(float factor, int64_t num_rows, int64_t row_stride, int32_t num_heads, int32_t head_dim, float* x) {
  const int threads = threads_for(num_rows * num_heads * head_dim, num_rows);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int32_t head = 0; head < num_heads; ++head) {
      HWY_DYNAMIC_DISPATCH(l2_normalise_one)(factor, head_dim, x + row * row_stride + int64_t{head} * head_dim);
    }
  }
}

bool delta_rule(const DeltaRuleArgs& args, AlignedBuffer& scratch) {
  const int64_t floats = HWY_DYNAMIC_DISPATCH(delta_scratch_floats)(args.key_head_dim, args.value_head_dim);
  const int threads =
      threads_for(args.num_rows * args.num_value_heads * args.key_head_dim * args.value_head_dim, args.num_value_heads);
  auto* memory = scratch.reserve_elements<float>(static_cast<size_t>(threads * floats));
  if (memory == nullptr) return false;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int32_t head = 0; head < args.num_value_heads; ++head) {
    HWY_DYNAMIC_DISPATCH(delta_head)(args, head, memory + omp_get_thread_num() * floats);
  }
  return true;
}

void gated_rms_norm(const GatedNormArgs& args) {
  const int threads = threads_for(args.num_rows * args.num_heads * args.head_dim, args.num_rows);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int part = 0; part < threads; ++part) {
    HWY_DYNAMIC_DISPATCH(gated_norm_rows)(args, args.num_rows * part / threads, args.num_rows * (part + 1) / threads);
  }
}

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
