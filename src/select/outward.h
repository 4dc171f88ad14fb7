// Rounding that keeps a bound a bound: to bf16 downwards or upwards, and norms that are never too small. Thread-safe.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "rarefy/core/dtype.h"

namespace rarefy {

inline constexpr float kUnitRoundoff = 0x1p-24f;

// How far |R k| in f32 can put q . k off, for both sides together and relative to |q| |k|: a rotation (select/rotation.h) has
// 2 (1 + log2 head_dim) roundings in a row, relative to the norm, and its factors are off by 3 units, four times.
inline double rotation_rounding(int32_t head_dim) {
  return (8.0 * (1.0 + std::log2(head_dim)) + 32.0) * double{kUnitRoundoff};
}

inline float bf16_to_float(uint16_t bits) { return to_float(BFloat16{bits}); }

inline float load_bf16(const std::byte* from) {  // [2] bytes
  uint16_t bits = 0;
  std::memcpy(&bits, from, sizeof(bits));
  return bf16_to_float(bits);
}

// The neighbour of a bf16 value towards plus or minus infinity.
inline uint16_t next_bf16(uint16_t bits, bool up) {
  if ((bits & 0x7fff) == 0) return up ? 0x0001 : 0x8001;
  const bool negative = (bits & 0x8000) != 0;
  return static_cast<uint16_t>(negative == up ? bits - 1 : bits + 1);
}

// The largest bf16 value that is not above `value`, or the smallest that is not below.
inline uint16_t bf16_outward(float value, bool up) {
  const BFloat16 nearest = to_bfloat16(value);
  const float rounded = to_float(nearest);
  return (up ? rounded < value : rounded > value) ? next_bf16(nearest.bits, up) : nearest.bits;
}

// A float that is not below `value` >= 0, which may carry a few roundings of double precision.
inline float float_above(double value) {
  return std::nextafter(static_cast<float>(value * (1.0 + 0x1p-40)), std::numeric_limits<float>::infinity());
}

// An upper bound of the largest norm of some rows, as bf16. rows [num_rows, dim] f32
inline uint16_t largest_norm_bf16(const float* rows, int32_t num_rows, int32_t dim) {
  double largest = 0.0;
  for (int32_t row = 0; row < num_rows; ++row) {
    double square = 0.0;
    for (int32_t i = 0; i < dim; ++i) {
      const double x = rows[int64_t{row} * dim + i];
      square += x * x;
    }
    largest = std::fmax(largest, square);
  }
  return bf16_outward(float_above(std::sqrt(largest)), true);
}

}  // namespace rarefy
