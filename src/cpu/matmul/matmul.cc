#include "cpu/matmul/matmul.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "cpu/elementwise/elementwise.h"
#include "cpu/matmul/dot_rows.h"
#ifdef RAREFY_HAVE_ONEDNN
#include "cpu/matmul/onednn_gemm.h"
#endif
#include "rarefy/core/device.h"

namespace rarefy::cpu {
namespace {

// A core streams about 15 bytes a nanosecond; a part worth forking for takes at least 4 us.
constexpr int64_t kMinBytesPerThread = 65536;
#ifdef RAREFY_HAVE_ONEDNN
// Weight rows that a CPU without bf16 products widens at a time.
constexpr int64_t kPanelRows = 1024;
#endif

// Several threads: one alone takes as long to have its pages mapped as to copy them.
void copy_bytes(const void* from, size_t bytes, void* to) {
  constexpr size_t kPiece = size_t{1} << 21;
  const auto pieces = static_cast<int64_t>((bytes + kPiece - 1) / kPiece);
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads()) if (pieces > 2)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const size_t first = static_cast<size_t>(piece) * kPiece;
    std::memcpy(static_cast<std::byte*>(to) + first, static_cast<const std::byte*>(from) + first,
                std::min(kPiece, bytes - first));
  }
}

template <typename From, typename To, typename Convert>
void convert_loop(const void* from, int64_t count, void* to, const Convert& convert) {
  const auto* source = static_cast<const std::byte*>(from);
  auto* target = static_cast<std::byte*>(to);
#pragma omp parallel for schedule(static) num_threads(num_threads()) if (count > 1 << 20)
  for (int64_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, source + i * static_cast<int64_t>(sizeof(From)), sizeof(From));
    const To converted = convert(value);
    std::memcpy(target + i * static_cast<int64_t>(sizeof(To)), &converted, sizeof(To));
  }
}

// Rounds to the nearest even value of the target, once, after the product with the scale.
template <typename To, typename Convert>
void dequantize(const WeightPart& part, int64_t in_dim, void* to, const Convert& convert) {
  std::array<float, 256> values;  // of each fp8 code
  for (int code = 0; code < 256; ++code)
    values[static_cast<size_t>(code)] = to_float(Float8E4M3{static_cast<uint8_t>(code)});
  const auto* codes = static_cast<const uint8_t*>(part.data);
  auto* target = static_cast<To*>(to);
  const int64_t block_rows = part.rows / part.scale_rows, block_columns = in_dim / part.scale_columns;
#pragma omp parallel for schedule(static) num_threads(num_threads()) if (part.rows * in_dim > 1 << 20)
  for (int64_t row = 0; row < part.rows; ++row) {
    for (int64_t block = 0; block < part.scale_columns; ++block) {
      const float scale = part.scales[row / block_rows * part.scale_columns + block];
      const int64_t first = row * in_dim + block * block_columns;
      for (int64_t i = first; i < first + block_columns; ++i) target[i] = convert(values[codes[i]] * scale);
    }
  }
}

Status convert_part(const WeightPart& part, int64_t in_dim, DType to_dtype, void* to) {
  if (part.dtype != DType::f8_e4m3) return convert_elements(part.data, part.dtype, part.rows * in_dim, to_dtype, to);
  if (part.scales == nullptr) return Status::invalid_argument("expected scales with fp8 weights, got none");
  if (to_dtype == DType::f32) {
    dequantize<float>(part, in_dim, to, [](float value) { return value; });
  } else {
    dequantize<BFloat16>(part, in_dim, to, [](float value) { return to_bfloat16(value); });
  }
  return {};
}

}  // namespace

Status convert_elements(const void* from, DType from_dtype, int64_t count, DType to_dtype, void* to) {
  if (from_dtype == to_dtype && (to_dtype == DType::f32 || to_dtype == DType::bf16)) {
    copy_bytes(from, static_cast<size_t>(count) * size_of(to_dtype), to);
  } else if (from_dtype == DType::bf16 && to_dtype == DType::f32) {
    convert_loop<BFloat16, float>(from, count, to, [](BFloat16 value) { return to_float(value); });
  } else if (from_dtype == DType::f16 && to_dtype == DType::f32) {
    convert_loop<Float16, float>(from, count, to, [](Float16 value) { return to_float(value); });
  } else if (from_dtype == DType::f16 && to_dtype == DType::bf16) {
    convert_loop<Float16, BFloat16>(from, count, to, [](Float16 value) { return to_bfloat16(to_float(value)); });
  } else if (from_dtype == DType::f32 && to_dtype == DType::bf16) {
    convert_loop<float, BFloat16>(from, count, to, [](float value) { return to_bfloat16(value); });
  } else {
    return Status::unsupported("expected weights of type f32, f16 or bf16 to be held as f32 or bf16, got " +
                               std::string(to_string(from_dtype)) + " to be held as " + std::string(to_string(to_dtype)));
  }
  return {};
}

bool has_fast_bf16_matmul() {
#ifdef RAREFY_HAVE_ONEDNN
  return onednn_has_bf16();
#else
  return false;
#endif
}

Expected<Matmul> Matmul::make(std::span<const WeightPart> parts, int64_t in_dim, DType weight_dtype,
                              std::vector<float> bias) {
  Matmul result;
  result.in_dim_ = in_dim;
  result.weight_dtype_ = weight_dtype;
  for (const WeightPart& part : parts) result.out_dim_ += part.rows;
  if (!bias.empty() && static_cast<int64_t>(bias.size()) != result.out_dim_) {
    return Status::invalid_argument("expected a bias of " + std::to_string(result.out_dim_) + " values, got " +
                                    std::to_string(bias.size()));
  }
  const size_t row_bytes = static_cast<size_t>(in_dim) * size_of(weight_dtype);
  auto* to = result.weight_.reserve(static_cast<size_t>(result.out_dim_) * row_bytes);
  if (to == nullptr) {
    return Status::resource_exhausted("out of memory for " + std::to_string(result.out_dim_) + " x " +
                                      std::to_string(in_dim) + " weights; free memory or choose a smaller model");
  }
  for (const WeightPart& part : parts) {
    RAREFY_RETURN_IF_ERROR(convert_part(part, in_dim, weight_dtype, to));
    if (part.done != nullptr) part.done(part.data, static_cast<size_t>(part.rows * in_dim) * size_of(part.dtype));
    to += static_cast<size_t>(part.rows) * row_bytes;
  }
  result.bias_ = std::move(bias);
  return result;
}

int64_t Matmul::weight_bytes() const {
  return in_dim_ * out_dim_ * static_cast<int64_t>(size_of(weight_dtype_)) +
         static_cast<int64_t>(bias_.size() * sizeof(float));
}

void Matmul::read_row(int64_t row, float* out) const {
  const auto* from = weight_.data() + row * in_dim_ * static_cast<int64_t>(size_of(weight_dtype_));
  if (weight_dtype_ == DType::f32) {
    std::memcpy(out, from, static_cast<size_t>(in_dim_) * sizeof(float));
    return;
  }
  const auto* bf16 = reinterpret_cast<const BFloat16*>(from);
  for (int64_t i = 0; i < in_dim_; ++i) out[i] = to_float(bf16[i]);
}

Status Matmul::run(const float* x, int64_t num_rows, MatmulScratch& scratch, float* y) const {
  if (num_rows <= kMaxStreamedRows) {
    run_streamed(x, num_rows, y);
  } else {
    RAREFY_RETURN_IF_ERROR(run_many(x, num_rows, scratch, y));
  }
  if (!bias_.empty()) add_row(bias_.data(), num_rows, out_dim_, y);
  return {};
}

void Matmul::run_streamed(const float* x, int64_t num_rows, float* y) const {
  const DotRowsArgs args{.weight = weight_.data(),
                         .weight_is_bf16 = weight_dtype_ == DType::bf16,
                         .x = x,
                         .y = y,
                         .num_rows = num_rows,
                         .in_dim = in_dim_,
                         .out_dim = out_dim_};
  const int threads = static_cast<int>(std::clamp<int64_t>(weight_bytes() / kMinBytesPerThread, 1, num_threads()));
  if (threads == 1) return dot_rows(args, 0, out_dim_);
  const int64_t blocks = (out_dim_ + kDotRowsBlock - 1) / kDotRowsBlock;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int part = 0; part < threads; ++part) {
    dot_rows(args, blocks * part / threads * kDotRowsBlock,
             std::min(out_dim_, blocks * (part + 1) / threads * kDotRowsBlock));
  }
}

#ifdef RAREFY_HAVE_ONEDNN
Status Matmul::run_many(const float* x, int64_t num_rows, MatmulScratch& scratch, float* y) const {
  OnednnGemmArgs args{.weight = weight_.data(),
                      .x = x,
                      .is_bf16 = false,
                      .y = y,
                      .num_rows = num_rows,
                      .in_dim = in_dim_,
                      .out_dim = out_dim_,
                      .y_row_stride = out_dim_};
  if (weight_dtype_ == DType::f32) return onednn_gemm(args, scratch.scratchpad_);

  if (onednn_has_bf16()) {
    auto* rounded = scratch.x_bf16_.reserve_elements<uint16_t>(static_cast<size_t>(num_rows * in_dim_));
    if (rounded == nullptr) return Status::resource_exhausted("out of memory for activations; use smaller prefill chunks");
    round_to_bf16(x, num_rows * in_dim_, rounded);
    args.x = rounded;
    args.is_bf16 = true;
    return onednn_gemm(args, scratch.scratchpad_);
  }

  auto* panel = scratch.weight_f32_.reserve_elements<float>(static_cast<size_t>(std::min(kPanelRows, out_dim_) * in_dim_));
  if (panel == nullptr) return Status::resource_exhausted("out of memory for widened weights; free memory");
  for (int64_t row = 0; row < out_dim_; row += kPanelRows) {
    args.out_dim = std::min(kPanelRows, out_dim_ - row);
    const auto* from = reinterpret_cast<const uint16_t*>(weight_.data()) + row * in_dim_;
    RAREFY_RETURN_IF_ERROR(convert_elements(from, DType::bf16, args.out_dim * in_dim_, DType::f32, panel));
    args.weight = panel;
    args.y = y + row;
    RAREFY_RETURN_IF_ERROR(onednn_gemm(args, scratch.scratchpad_));
  }
  return {};
}
#else
Status Matmul::run_many(const float* x, int64_t num_rows, MatmulScratch&, float* y) const {
  run_streamed(x, num_rows, y);
  return {};
}
#endif

}  // namespace rarefy::cpu
