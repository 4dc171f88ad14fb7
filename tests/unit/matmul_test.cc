#include "cpu/matmul/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "hwy/targets.h"
#include "rarefy/core/device.h"
#include "ref/elementwise.h"

namespace rarefy {
namespace {

constexpr uint32_t kSeed = 20261124;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> normal(size_t count, uint32_t seed) {
  std::mt19937 generator(kSeed + seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(count);
  for (float& value : values) value = distribution(generator);
  return values;
}

// Every test runs with the best instruction set of the machine and with those below it.
class Matmul : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::DisableTargets(GetParam()); }
  void TearDown() override { hwy::DisableTargets(0); }
};

// Weights as bytes of a dtype at an odd address, as in a file, and the values they stand for.
struct StoredWeights {
  StoredWeights(std::vector<float> values_in, DType dtype)
      : values(std::move(values_in)), bytes(values.size() * size_of(dtype) + 1) {
    std::vector<std::byte> aligned(values.size() * size_of(dtype));
    for (size_t i = 0; i < values.size(); ++i) {
      store_from_float(aligned.data(), dtype, static_cast<int64_t>(i), values[i]);
      values[i] = load_as_float(aligned.data(), dtype, static_cast<int64_t>(i));
    }
    std::memcpy(bytes.data() + 1, aligned.data(), aligned.size());
  }
  const void* data() const { return bytes.data() + 1; }
  std::vector<float> values;     // [count] f32
  std::vector<std::byte> bytes;  // [1 + count * size] bytes
};

struct Shape {
  int64_t num_rows, in_dim, out_dim;
};
constexpr Shape kShapes[] = {{1, 1, 1},    {1, 3, 5},     {1, 17, 9},    {2, 31, 33},  {3, 64, 8},
                             {4, 320, 96}, {5, 65, 70},   {8, 33, 40},   {9, 16, 24},  {9, 33, 7},
                             {16, 64, 64}, {50, 100, 33}, {77, 320, 96}, {1, 704, 320}};

void check(const Shape& shape, DType file_dtype, DType weight_dtype, bool with_bias) {
  SCOPED_TRACE(testing::Message() << shape.num_rows << " x " << shape.in_dim << " x " << shape.out_dim << " "
                                  << to_string(file_dtype) << " as " << to_string(weight_dtype) << " seed " << kSeed);
  const auto x = normal(shape.num_rows * shape.in_dim, 1);
  StoredWeights stored(normal(shape.out_dim * shape.in_dim, 2), file_dtype);
  const auto bias = with_bias ? normal(shape.out_dim, 3) : std::vector<float>();
  const cpu::WeightPart part{stored.data(), file_dtype, shape.out_dim};
  auto layer = cpu::Matmul::make({&part, 1}, shape.in_dim, weight_dtype, bias);
  ASSERT_TRUE(layer) << layer.status().to_string();

  std::vector<float> weights = stored.values;
  if (weight_dtype == DType::bf16) {
    for (float& value : weights) value = to_float(to_bfloat16(value));
  }
  constexpr size_t kGuard = 64;
  std::vector<float> y(shape.num_rows * shape.out_dim + 2 * kGuard, kNan);
  cpu::MatmulScratch scratch;
  const Status status = layer->run(x.data(), shape.num_rows, scratch, y.data() + kGuard);
  ASSERT_TRUE(status.ok()) << status.to_string();

  std::vector<double> magnitude;
  const auto expected = ref::matmul(x.data(), weights.data(), with_bias ? bias.data() : nullptr, shape.num_rows,
                                    shape.in_dim, shape.out_dim, &magnitude);
  // f32 sums of n terms: (n + 1) eps of the sum of magnitudes. Activations rounded to bf16 add 2^-8.
  const bool rounded_x = weight_dtype == DType::bf16 && shape.num_rows > cpu::Matmul::kMaxStreamedRows;
  const double relative =
      static_cast<double>(shape.in_dim + 2) * std::numeric_limits<float>::epsilon() + (rounded_x ? 1.0 / 256 : 0);
  for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(y[kGuard + i], expected[i], relative * magnitude[i]) << i;
  for (size_t i = 0; i < kGuard; ++i) {
    ASSERT_TRUE(std::isnan(y[i]));
    ASSERT_TRUE(std::isnan(y[y.size() - 1 - i]));
  }
  std::vector<float> row(shape.in_dim);
  layer->read_row(shape.out_dim - 1, row.data());
  EXPECT_EQ(row, std::vector<float>(weights.end() - shape.in_dim, weights.end()));
}

TEST_P(Matmul, MatchesReference) {
  for (const Shape& shape : kShapes) {
    for (const DType file_dtype : {DType::f32, DType::f16, DType::bf16}) {
      for (const DType weight_dtype : {DType::f32, DType::bf16})
        check(shape, file_dtype, weight_dtype, shape.in_dim % 2 == 0);
    }
  }
}

TEST_P(Matmul, StackedPartsAreOneUnderTheOther) {
  const int64_t in_dim = 48;
  const StoredWeights a(normal(16 * in_dim, 4), DType::bf16), b(normal(8 * in_dim, 5), DType::f32);
  const cpu::WeightPart parts[] = {{a.data(), DType::bf16, 16}, {b.data(), DType::f32, 8}};
  auto layer = cpu::Matmul::make(parts, in_dim, DType::f32);
  ASSERT_TRUE(layer);
  EXPECT_EQ(layer->out_dim(), 24);
  EXPECT_EQ(layer->weight_bytes(), 24 * in_dim * 4);
  std::vector<float> weights = a.values;
  weights.insert(weights.end(), b.values.begin(), b.values.end());
  const auto x = normal(in_dim, 6);
  std::vector<float> y(24);
  cpu::MatmulScratch scratch;
  ASSERT_TRUE(layer->run(x.data(), 1, scratch, y.data()).ok());
  std::vector<double> magnitude;
  const auto expected = ref::matmul(x.data(), weights.data(), nullptr, 1, in_dim, 24, &magnitude);
  for (int i = 0; i < 24; ++i) EXPECT_NEAR(y[i], expected[i], 50 * 1.2e-7 * magnitude[i]);
}

// A decode step must not depend on what else is computed with it, nor on the threads.
TEST_P(Matmul, StreamedRowsHaveTheSameBitsAloneAndTogether) {
  const int64_t in_dim = 323, out_dim = 2051;
  const auto x = normal(cpu::Matmul::kMaxStreamedRows * in_dim, 7);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const StoredWeights stored(normal(out_dim * in_dim, 8), dtype);
    const cpu::WeightPart part{stored.data(), dtype, out_dim};
    auto layer = cpu::Matmul::make({&part, 1}, in_dim, dtype);
    ASSERT_TRUE(layer);
    cpu::MatmulScratch scratch;
    for (const int threads : {1, 2, 3, 7}) {
      set_num_threads(threads);
      for (int64_t rows = 1; rows <= cpu::Matmul::kMaxStreamedRows; ++rows) {
        std::vector<float> together(rows * out_dim), alone(out_dim);
        ASSERT_TRUE(layer->run(x.data(), rows, scratch, together.data()).ok());
        set_num_threads(1);
        for (int64_t row = 0; row < rows; ++row) {
          ASSERT_TRUE(layer->run(x.data() + row * in_dim, 1, scratch, alone.data()).ok());
          ASSERT_EQ(0, std::memcmp(alone.data(), together.data() + row * out_dim, out_dim * sizeof(float)))
              << rows << " rows, " << threads << " threads, row " << row;
        }
        set_num_threads(threads);
      }
    }
    set_num_threads(0);
  }
}

// One scale a tensor, one a row, and grids: the weight is code times scale, rounded once.
TEST_P(Matmul, Fp8WeightsAreMultipliedByTheScaleOfTheirBlock) {
  constexpr int64_t kRows = 8, kColumns = 12;
  std::vector<uint8_t> codes(kRows * kColumns);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>((i * 37 + 11) % 0x7f + (i % 2) * 0x80);
  for (const auto& [scale_rows, scale_columns] : {std::pair<int64_t, int64_t>{1, 1}, {8, 1}, {2, 3}, {1, 12}}) {
    std::vector<float> scales;
    for (int64_t i = 0; i < scale_rows * scale_columns; ++i) scales.push_back(0.01f * static_cast<float>(i + 1));
    const cpu::WeightPart part{codes.data(), DType::f8_e4m3, kRows, scales.data(), scale_rows, scale_columns};
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const auto layer = cpu::Matmul::make({&part, 1}, kColumns, dtype);
      ASSERT_TRUE(layer) << layer.status().to_string();
      std::vector<float> row(kColumns);
      for (int64_t r = 0; r < kRows; ++r) {
        layer->read_row(r, row.data());
        for (int64_t c = 0; c < kColumns; ++c) {
          const float scale = scales[r / (kRows / scale_rows) * scale_columns + c / (kColumns / scale_columns)];
          const float exact = to_float(Float8E4M3{codes[r * kColumns + c]}) * scale;
          EXPECT_EQ(row[c], dtype == DType::f32 ? exact : to_float(to_bfloat16(exact)));
        }
      }
    }
  }
  const cpu::WeightPart unscaled{codes.data(), DType::f8_e4m3, kRows};
  EXPECT_FALSE(cpu::Matmul::make({&unscaled, 1}, kColumns, DType::f32));
}

TEST_P(Matmul, RefusesWhatItCannotHold) {
  const std::vector<int32_t> integers(16);
  const cpu::WeightPart part{integers.data(), DType::i32, 4};
  const auto layer = cpu::Matmul::make({&part, 1}, 4, DType::f32);
  ASSERT_FALSE(layer);
  EXPECT_EQ(layer.status().code(), StatusCode::unsupported);
  const std::vector<float> weights(16);
  const cpu::WeightPart floats{weights.data(), DType::f32, 4};
  const auto wrong_bias = cpu::Matmul::make({&floats, 1}, 4, DType::f32, std::vector<float>(3));
  ASSERT_FALSE(wrong_bias);
  EXPECT_EQ(wrong_bias.status().code(), StatusCode::invalid_argument);
}

#if HWY_ARCH_X86
// Better targets have lower bits: all, AVX2 at most, below AVX2.
INSTANTIATE_TEST_SUITE_P(Targets, Matmul, ::testing::Values(0, HWY_AVX2 - 1, 2 * HWY_AVX2 - 1));
#else
INSTANTIATE_TEST_SUITE_P(Targets, Matmul, ::testing::Values(0));
#endif

}  // namespace
}  // namespace rarefy
