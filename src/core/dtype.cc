#include "rarefy/core/dtype.h"

#include <cmath>

namespace rarefy {

std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32: return 4;
    case DType::f16:
    case DType::bf16: return 2;
    case DType::i8:
    case DType::u8:
    case DType::f8_e4m3: return 1;
  }
  return 0;
}

std::string_view to_string(DType dtype) {
  switch (dtype) {
    case DType::f32: return "f32";
    case DType::f16: return "f16";
    case DType::bf16: return "bf16";
    case DType::i32: return "i32";
    case DType::i8: return "i8";
    case DType::u8: return "u8";
    case DType::f8_e4m3: return "f8_e4m3";
  }
  return "unknown";
}

Expected<DType> parse_dtype(std::string_view text) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i32, DType::i8, DType::u8, DType::f8_e4m3}) {
    if (text == to_string(dtype)) return dtype;
  }
  return Status::invalid_argument("expected a data type such as f32, f16 or bf16, got '" + std::string(text) + "'");
}

float to_float(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1fu;
  const uint32_t mantissa = value.bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // zero and subnormals, exact
  return sign != 0 ? -magnitude : magnitude;
}

BFloat16 to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

Float16 to_float16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds past 65504
  if (magnitude < 0x38800000u) {
    // Subnormal half: adding 0.5 puts the 2^-24 grid at the last mantissa bit, so the hardware rounds to even for us.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

float to_float(Float8E4M3 value) {
  const bool negative = (value.bits & 0x80u) != 0;
  const uint32_t magnitude = value.bits & 0x7fu;
  if (magnitude == 0x7f) return std::bit_cast<float>(negative ? 0xffc00000u : 0x7fc00000u);
  // The same bits as the top of an f32 with exponent bias 7 + 120; the product is exact, subnormals included.
  const float result = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
  return negative ? -result : result;
}

Float8E4M3 to_float8_e4m3(float value) {
  const auto sign = static_cast<uint8_t>(std::signbit(value) ? 0x80 : 0);
  if (std::isnan(value)) return {static_cast<uint8_t>(sign | 0x7f)};
  const float magnitude = std::abs(value);
  if (magnitude >= 448.0f) return {static_cast<uint8_t>(sign | 0x7e)};
  if (magnitude < 0x1p-6f) {  // subnormal: a multiple of 2^-9; nearbyint rounds ties to even
    return {static_cast<uint8_t>(sign | static_cast<uint8_t>(std::nearbyint(magnitude * 512.0f)))};
  }
  const uint32_t bits = std::bit_cast<uint32_t>(magnitude);
  const uint32_t rounded = bits + 0x7ffffu + ((bits >> 20) & 1u);
  const uint32_t code = (rounded - (120u << 23)) >> 20;
  return {static_cast<uint8_t>(sign | (code > 0x7eu ? 0x7eu : code))};
}

float load_as_float(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::f32: return static_cast<const float*>(data)[index];
    case DType::f16: return to_float(static_cast<const Float16*>(data)[index]);
    case DType::bf16: return to_float(static_cast<const BFloat16*>(data)[index]);
    case DType::f8_e4m3: return to_float(static_cast<const Float8E4M3*>(data)[index]);
    default: return 0.0f;
  }
}

void store_from_float(void* data, DType dtype, int64_t index, float value) {
  switch (dtype) {
    case DType::f32: static_cast<float*>(data)[index] = value; break;
    case DType::f16: static_cast<Float16*>(data)[index] = to_float16(value); break;
    case DType::bf16: static_cast<BFloat16*>(data)[index] = to_bfloat16(value); break;
    case DType::f8_e4m3: static_cast<Float8E4M3*>(data)[index] = to_float8_e4m3(value); break;
    default: break;
  }
}

}  // namespace rarefy
