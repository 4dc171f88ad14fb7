// Element types and their conversions to and from float.
//
// f16 and bf16 are carried as 16-bit patterns (Float16, BFloat16): no arithmetic is done in them. Conversions from float
// round to nearest, ties to even; NaN stays NaN.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "rarefy/core/status.h"

namespace rarefy {

enum class DType : int32_t { f32 = 0, f16 = 1, bf16 = 2, i32 = 3, i8 = 4, u8 = 5, f8_e4m3 = 6 };

std::size_t size_of(DType dtype);       // bytes of one element
std::string_view to_string(DType dtype);  // "f32", "bf16", ...
Expected<DType> parse_dtype(std::string_view text);

struct Float16 {
  uint16_t bits = 0;
};
struct BFloat16 {
  uint16_t bits = 0;
};

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
float to_float(Float16 value);

BFloat16 to_bfloat16(float value);
Float16 to_float16(float value);

// Element `index` of a buffer as float; 0 for types other than f32, f16 and bf16.
float load_as_float(const void* data, DType dtype, int64_t index);           // data [count] dtype
void store_from_float(void* data, DType dtype, int64_t index, float value);  // data [count] dtype

}  // namespace rarefy
