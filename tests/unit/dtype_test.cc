// Element types: exact values, rounding to nearest even, every f16 and bf16 pattern there and back.
#include "rarefy/core/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace rarefy {
namespace {

TEST(DType, NamesAndSizesAgree) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i32, DType::i8, DType::u8, DType::f8_e4m3}) {
    const Expected<DType> parsed = parse_dtype(to_string(dtype));
    ASSERT_TRUE(parsed);
    EXPECT_EQ(*parsed, dtype);
    EXPECT_GE(size_of(dtype), 1u);
  }
  EXPECT_EQ(size_of(DType::f32), 4u);
  EXPECT_EQ(size_of(DType::bf16), 2u);
  const Expected<DType> wrong = parse_dtype("float64");
  ASSERT_FALSE(wrong);
  EXPECT_NE(wrong.status().message().find("float64"), std::string::npos);
}

TEST(DType, EveryHalfSurvivesARoundTrip) {
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
    const auto bits = static_cast<uint16_t>(pattern);
    const float half = to_float(Float16{bits}), brain = to_float(BFloat16{bits});
    if (std::isnan(half)) {
      EXPECT_TRUE(std::isnan(to_float(to_float16(half)))) << pattern;
    } else {
      EXPECT_EQ(to_float16(half).bits, bits);
    }
    if (std::isnan(brain)) {
      EXPECT_TRUE(std::isnan(to_float(to_bfloat16(brain)))) << pattern;
    } else {
      EXPECT_EQ(to_bfloat16(brain).bits, bits);
    }
  }
}

TEST(DType, KnownValues) {
  EXPECT_EQ(to_float(Float16{0x3c00}), 1.0f);
  EXPECT_EQ(to_float(Float16{0x0001}), 0x1p-24f);
  EXPECT_EQ(to_float(Float16{0x7bff}), 65504.0f);
  EXPECT_EQ(to_float(Float16{0xfc00}), -INFINITY);
  EXPECT_EQ(to_float(BFloat16{0x3f80}), 1.0f);
  EXPECT_EQ(to_float16(65520.0f).bits, 0x7c00);  // halfway to the next: rounds to infinity
  EXPECT_EQ(to_float16(65519.9f).bits, 0x7bff);
  EXPECT_EQ(to_bfloat16(std::numeric_limits<float>::max()).bits, 0x7f80);
}

// Between two neighbours the nearer one wins, and the even one in the middle.
TEST(DType, RoundsToNearestTiesToEven) {
  for (uint32_t pattern = 0; pattern < 0x7bff; ++pattern) {
    const auto bits = static_cast<uint16_t>(pattern);
    const float low = to_float(Float16{bits}), high = to_float(Float16{static_cast<uint16_t>(bits + 1)});
    const float middle = 0.5f * (low + high);
    EXPECT_EQ(to_float16(middle).bits, bits + (bits & 1)) << pattern;
    EXPECT_EQ(to_float16(std::nextafter(middle, low)).bits, bits) << pattern;
    EXPECT_EQ(to_float16(std::nextafter(middle, high)).bits, bits + 1) << pattern;
    EXPECT_EQ(to_float16(-middle).bits, 0x8000 + bits + (bits & 1)) << pattern;
  }
  for (uint32_t pattern = 0; pattern < 0x7f7f; pattern += 7) {
    const auto bits = static_cast<uint16_t>(pattern);
    const float middle = std::bit_cast<float>(uint32_t{bits} << 16 | 0x8000u);
    EXPECT_EQ(to_bfloat16(middle).bits, bits + (bits & 1)) << pattern;
    EXPECT_EQ(to_bfloat16(std::nextafter(middle, 0.0f)).bits, bits) << pattern;
    EXPECT_EQ(to_bfloat16(std::nextafter(middle, INFINITY)).bits, bits + 1) << pattern;
  }
}

TEST(DType, LoadAndStoreByType) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    float buffer[4] = {};
    store_from_float(buffer, dtype, 1, -1.5f);
    EXPECT_EQ(load_as_float(buffer, dtype, 1), -1.5f);
    EXPECT_EQ(load_as_float(buffer, dtype, 0), 0.0f);
    EXPECT_EQ(load_as_float(buffer, dtype, 2), 0.0f);
  }
}

// Every code converts to its definition and back; between two neighbours the nearer wins, ties go to the even code.
TEST(Float8E4M3, RoundsToNearestEvenAndSaturates) {
  for (uint32_t code = 0; code < 0x7f; ++code) {
    const double exponent = code >> 3, mantissa = code & 7;
    const double expected = code < 8 ? mantissa * 0x1p-9 : (1.0 + mantissa / 8.0) * std::exp2(exponent - 7.0);
    const float value = to_float(Float8E4M3{static_cast<uint8_t>(code)});
    EXPECT_EQ(value, expected) << code;
    EXPECT_EQ(to_float(Float8E4M3{static_cast<uint8_t>(code | 0x80)}), -expected) << code;
    EXPECT_EQ(to_float8_e4m3(value).bits, code);
    EXPECT_EQ(to_float8_e4m3(-value).bits, code | 0x80);
    if (code == 0x7e) continue;
    const float next = to_float(Float8E4M3{static_cast<uint8_t>(code + 1)}), middle = 0.5f * (value + next);
    EXPECT_EQ(to_float8_e4m3(middle).bits, code + (code & 1)) << code;
    EXPECT_EQ(to_float8_e4m3(std::nextafter(middle, 0.0f)).bits, code);
    EXPECT_EQ(to_float8_e4m3(std::nextafter(middle, 1e9f)).bits, code + 1);
  }
  EXPECT_EQ(to_float8_e4m3(1e6f).bits, 0x7e);
  EXPECT_EQ(to_float8_e4m3(-INFINITY).bits, 0xfe);
  EXPECT_TRUE(std::isnan(to_float(Float8E4M3{0x7f})));
  EXPECT_EQ(to_float8_e4m3(NAN).bits & 0x7f, 0x7f);
}

}  // namespace
}  // namespace rarefy
