// Element types and their conversions to and from float.
//
// f16, bf16 and f8_e4m3 are carried as bit patterns (Float16, BFloat16, Float8E4M3): no arithmetic is done in them. Conversions
// from float round to nearest, ties to even; NaN stays NaN. f8_e4m3 (OCP "FN": 4 exponent and 3 mantissa bits, bias 7) has no
// infinity; what rounds past its largest number, 448, becomes that number.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "rarefy/core/status.h"

namespace rarefy {

enum class DType : int32_t { f32 = 0, f16 = 1, bf16 = 2, i32 = 3, i8 = 4, u8 = 5, f8_e4m3 = 6 };

std::size_t size_of(DType dtype);         // bytes of one element
std::string_view to_string(DType dtype);  // "f32", "bf16", ...
Expected<DType> parse_dtype(std::string_view text);

struct Float16 {
  uint16_t bits = 0;
};
struct BFloat16 {
  uint16_t bits = 0;
};
struct Float8E4M3 {
  uint8_t bits = 0;
};

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
float to_float(Float16 value);
float to_float(Float8E4M3 value);

BFloat16 to_bfloat16(float value);
Float16 to_float16(float value);
Float8E4M3 to_float8_e4m3(float value);

// Element `index` of a buffer as float; 0 for integer types.
float load_as_float(const void* data, DType dtype, int64_t index);           // data [count] dtype
void store_from_float(void* data, DType dtype, int64_t index, float value);  // data [count] dtype

}  // namespace rarefy
