#include "cpu/elementwise/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>
#include <random>
#include <string>
#include <vector>

#include "hwy/targets.h"
#include "rarefy/core/device.h"
#include "rarefy/core/dtype.h"
#include "ref/elementwise.h"

namespace rarefy {
namespace {

constexpr uint32_t kSeed = 20261124;
constexpr double kEps = std::numeric_limits<float>::epsilon();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
// Vectors of 4, 8 and 16 lanes, their neighbours, and the shapes of real models.
constexpr int64_t kLengths[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 320, 704, 1023, 2048};

std::vector<float> normal(size_t count, float scale, uint32_t seed) {
  std::mt19937 generator(kSeed + seed);
  std::normal_distribution<float> distribution(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(generator);
  return values;
}

// Every test runs with the best instruction set of the machine and with those below it.
class Elementwise : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::DisableTargets(GetParam()); }
  void TearDown() override { hwy::DisableTargets(0); }
};

// A buffer with NaN guards around what a call may write.
struct Guarded {
  static constexpr size_t kGuard = 32;
  explicit Guarded(size_t count) : storage(count + 2 * kGuard, kNan), count(count) {}
  float* data() { return storage.data() + kGuard; }
  void expect_guards_intact() const {
    for (size_t i = 0; i < kGuard; ++i) {
      EXPECT_TRUE(std::isnan(storage[i])) << "wrote " << kGuard - i << " before the output";
      EXPECT_TRUE(std::isnan(storage[kGuard + count + i])) << "wrote " << i << " past the output";
    }
  }
  std::vector<float> storage;
  size_t count;
};

TEST_P(Elementwise, RmsNormMatchesReference) {
  for (const int64_t dim : kLengths) {
    for (const int64_t rows : {1, 3}) {
      const auto x = normal(rows * dim, 3.0f, 1), weight = normal(dim, 1.0f, 2);
      Guarded out(rows * dim);
      cpu::rms_norm(x.data(), weight.data(), 1e-5f, rows, dim, out.data());
      const auto expected = ref::rms_norm(x.data(), weight.data(), 1e-5f, rows, dim);
      // The sum of `dim` squares is off by at most dim * eps relative, the root halves it; four more roundings.
      const double tolerance = (0.5 * static_cast<double>(dim) + 6) * kEps;
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_NEAR(out.data()[i], expected[i], tolerance * std::abs(expected[i])) << "dim " << dim << " at " << i;
      }
      out.expect_guards_intact();
    }
  }
}

TEST_P(Elementwise, RmsNormInPlaceAndRowsAreIndependent) {
  const int64_t rows = 300, dim = 320;  // enough rows for several threads
  const auto x = normal(rows * dim, 1.0f, 3), weight = normal(dim, 1.0f, 4);
  auto in_place = x;
  cpu::rms_norm(in_place.data(), weight.data(), 1e-6f, rows, dim, in_place.data());
  std::vector<float> alone(dim);
  for (int64_t row = 0; row < rows; ++row) {
    cpu::rms_norm(x.data() + row * dim, weight.data(), 1e-6f, 1, dim, alone.data());
    ASSERT_EQ(alone, std::vector<float>(in_place.begin() + row * dim, in_place.begin() + (row + 1) * dim)) << row;
  }
}

TEST_P(Elementwise, RopeMatchesReference) {
  for (const auto& [head_dim, rotary_dim] :
       {std::pair{2, 2}, {6, 4}, {16, 16}, {34, 34}, {64, 64}, {128, 128}, {256, 64}, {40, 26}}) {
    const int64_t rows = 3, first_position = 262141;
    const int32_t heads = 3, stride = heads * head_dim + 5;
    auto x = normal(rows * stride, 2.0f, 5);
    for (int64_t row = 0; row < rows; ++row) {
      for (int i = 0; i < 5; ++i) x[row * stride + heads * head_dim + i] = kNan;  // between rows: never read
    }
    std::vector<float> frequency(rotary_dim / 2), cos(rows * rotary_dim / 2), sin(rows * rotary_dim / 2);
    for (int j = 0; j < rotary_dim / 2; ++j) frequency[j] = static_cast<float>(std::pow(1e6, -2.0 * j / rotary_dim));
    for (int64_t row = 0; row < rows; ++row) {
      for (int j = 0; j < rotary_dim / 2; ++j) {
        const double angle = static_cast<double>(first_position + row) * frequency[j];
        cos[row * rotary_dim / 2 + j] = static_cast<float>(1.25 * std::cos(angle));
        sin[row * rotary_dim / 2 + j] = static_cast<float>(1.25 * std::sin(angle));
      }
    }
    Guarded out(rows * heads * head_dim);
    cpu::rope({.x = x.data(),
               .x_row_stride = stride,
               .cos = cos.data(),
               .sin = sin.data(),
               .num_rows = rows,
               .num_heads = heads,
               .head_dim = head_dim,
               .rotary_dim = rotary_dim,
               .out = out.data()});
    const auto expected =
        ref::rope(x.data(), stride, frequency.data(), 1.25, first_position, rows, heads, head_dim, rotary_dim);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < int64_t{heads} * head_dim; ++i) {
        const int64_t at = row * heads * head_dim + i;
        const int64_t j = i % head_dim, half = rotary_dim / 2;
        if (j >= rotary_dim) {
          ASSERT_EQ(out.data()[at], x[row * stride + i]);
          continue;
        }
        const double low = x[row * stride + i - j + j % half], high = x[row * stride + i - j + j % half + half];
        ASSERT_NEAR(out.data()[at], expected[at], 3 * kEps * 1.25 * (std::abs(low) + std::abs(high)))
            << "head_dim " << head_dim << " rotary_dim " << rotary_dim << " at " << at;
      }
    }
    out.expect_guards_intact();
  }
}

TEST_P(Elementwise, SiluMulMatchesReference) {
  for (const int64_t dim : kLengths) {
    for (const int64_t rows : {1, 3}) {
      auto gate_up = normal(rows * 2 * dim, 4.0f, 6);
      Guarded out(rows * dim);
      cpu::silu_mul(gate_up.data(), rows, dim, out.data());
      const auto expected = ref::silu_mul(gate_up.data(), rows, dim);
      for (size_t i = 0; i < expected.size(); ++i) {
        // The exponential is within 4 ulp; its argument enters exactly.
        ASSERT_NEAR(out.data()[i], expected[i], 8 * kEps * std::abs(expected[i])) << "dim " << dim << " at " << i;
      }
      out.expect_guards_intact();
    }
  }
}

TEST_P(Elementwise, SiluMulExtremesStayFinite) {
  const std::vector<float> gates = {-1e30f, -200.0f, -104.0f, -89.0f, -88.0f, 0.0f, 88.0f, 200.0f, 1e30f};
  std::vector<float> gate_up = gates;
  gate_up.resize(2 * gates.size(), 1.0f);
  std::vector<float> out(gates.size());
  cpu::silu_mul(gate_up.data(), 1, static_cast<int64_t>(gates.size()), out.data());
  for (size_t i = 0; i < gates.size(); ++i) {
    if (gates[i] >= 0.0f) {
      EXPECT_EQ(out[i], gates[i]);
    } else {
      EXPECT_LE(std::abs(out[i]), std::abs(gates[i]) * 1e-35f) << gates[i];
    }
  }
}

TEST_P(Elementwise, SiluMulNanInNanOut) {
  const std::vector<float> gate_up = {kNan, 1.0f, 1.0f, kNan};
  std::vector<float> out(2);
  cpu::silu_mul(gate_up.data(), 1, 2, out.data());
  EXPECT_TRUE(std::isnan(out[0]));
  EXPECT_TRUE(std::isnan(out[1]));
}

TEST_P(Elementwise, GeluTanhMulMatchesReference) {
  for (const int64_t dim : kLengths) {
    for (const int64_t rows : {1, 3}) {
      const auto gate_up = normal(rows * 2 * dim, 3.0f, 12);
      Guarded out(rows * dim);
      cpu::gelu_tanh_mul(gate_up.data(), rows, dim, out.data());
      const auto expected = ref::gelu_tanh_mul(gate_up.data(), rows, dim);
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < dim; ++i) {
          const double z = gate_up[row * 2 * dim + i], up = gate_up[row * 2 * dim + dim + i];
          // The argument of the exponential, rounded four times, enters with its size; below exp(-88) it is cut off. The
          // oracle's 1 + tanh is off by 2^-53.
          const double argument = 1.6 * (std::abs(z) + 0.045 * std::abs(z * z * z));
          const double relative = (4 * std::min(argument, 88.0) + 12) * kEps;
          ASSERT_NEAR(out.data()[row * dim + i], expected[row * dim + i],
                      relative * std::abs(expected[row * dim + i]) + 2e-16 * std::abs(z * up))
              << z;
        }
      }
      out.expect_guards_intact();
    }
  }
}

TEST_P(Elementwise, HeadsAreNormedAndGatedInPlace) {
  for (const int32_t head_dim : {1, 7, 16, 33, 128}) {
    const int64_t rows = 3, heads = 2, head_stride = 2 * head_dim + 1, stride = heads * head_stride + 3;
    std::vector<float> x(rows * stride, kNan);
    const auto values = normal(rows * heads * head_dim, 2.0f, 13), weight = normal(head_dim, 1.0f, 14);
    const auto at = [&](int64_t row, int64_t head) { return row * stride + head * head_stride; };
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t head = 0; head < heads; ++head)
        std::copy_n(values.begin() + (row * heads + head) * head_dim, head_dim, x.begin() + at(row, head));
    }
    auto gated = normal(values.size(), 2.0f, 15);
    const auto gate_expected = ref::sigmoid_mul(values.data(), gated.data(), static_cast<int64_t>(gated.size()));
    cpu::sigmoid_gate({.gate = x.data(),
                       .gate_row_stride = stride,
                       .gate_head_stride = head_stride,
                       .num_rows = rows,
                       .num_heads = static_cast<int32_t>(heads),
                       .head_dim = head_dim,
                       .inout = gated.data()});
    for (size_t i = 0; i < gated.size(); ++i)
      ASSERT_NEAR(gated[i], gate_expected[i], 8 * kEps * std::abs(gate_expected[i])) << head_dim << " at " << i;

    const auto norm_expected = ref::rms_norm(values.data(), weight.data(), 1e-6f, rows * heads, head_dim);
    cpu::rms_norm_heads({.x = x.data(),
                         .x_row_stride = stride,
                         .x_head_stride = head_stride,
                         .weight = weight.data(),
                         .epsilon = 1e-6f,
                         .num_rows = rows,
                         .num_heads = static_cast<int32_t>(heads),
                         .head_dim = head_dim});
    size_t untouched = 0;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < stride; ++i) {
        const int64_t head = i / head_stride, j = i % head_stride;
        if (head >= heads || j >= head_dim) {
          untouched += std::isnan(x[row * stride + i]);
          continue;
        }
        const double expected = norm_expected[(row * heads + head) * head_dim + j];
        ASSERT_NEAR(x[row * stride + i], expected, (0.5 * head_dim + 6) * kEps * std::abs(expected));
      }
    }
    EXPECT_EQ(untouched, x.size() - values.size());
  }
}

TEST_P(Elementwise, ScaleAndSoftCap) {
  for (const int64_t count : kLengths) {
    const auto x = normal(count, 20.0f, 16);
    Guarded scaled(count), capped(count);
    std::copy(x.begin(), x.end(), scaled.data());
    std::copy(x.begin(), x.end(), capped.data());
    cpu::scale(1.75f, count, scaled.data());
    cpu::soft_cap(30.0f, count, capped.data());
    const auto expected = ref::soft_cap(x.data(), 30.0, count);
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(scaled.data()[i], x[i] * 1.75f);
      // tanh within 4 ulp; its argument is rounded twice, which enters with a factor below 1.
      ASSERT_NEAR(capped.data()[i], expected[i], 10 * kEps * std::abs(expected[i]));
    }
    scaled.expect_guards_intact();
    capped.expect_guards_intact();
  }
}

TEST_P(Elementwise, AddIsExactAtEveryLength) {
  for (const int64_t count : kLengths) {
    const auto x = normal(count, 1.0f, 7), before = normal(count, 1.0f, 8);
    Guarded out(count);
    std::copy(before.begin(), before.end(), out.data());
    cpu::add(x.data(), count, out.data());
    for (int64_t i = 0; i < count; ++i) ASSERT_EQ(out.data()[i], before[i] + x[i]);
    out.expect_guards_intact();

    Guarded rows(3 * count);
    for (int row = 0; row < 3; ++row) std::copy(before.begin(), before.end(), rows.data() + row * count);
    cpu::add_row(x.data(), 3, count, rows.data());
    for (int64_t i = 0; i < 3 * count; ++i) ASSERT_EQ(rows.data()[i], before[i % count] + x[i % count]);
    rows.expect_guards_intact();
  }
}

TEST_P(Elementwise, RoundToBf16AgreesWithTheScalarConversion) {
  auto x = normal(1000, 1.0f, 9);
  for (uint32_t i = 0; i < 500; ++i) x.push_back(std::bit_cast<float>(0x3f800000u + (i << 12)));  // ties included
  x.insert(x.end(),
           {0.0f, -0.0f, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
            std::numeric_limits<float>::max(), std::numeric_limits<float>::denorm_min(), kNan,
            std::bit_cast<float>(0x7fffffffu), std::bit_cast<float>(0xffffffffu), std::bit_cast<float>(0x7f800001u)});
  for (size_t skip = 0; skip < 20; ++skip) {  // every alignment and tail
    std::vector<uint16_t> out(x.size() - skip);
    cpu::round_to_bf16(x.data() + skip, static_cast<int64_t>(out.size()), out.data());
    for (size_t i = 0; i < out.size(); ++i) {
      const BFloat16 expected = to_bfloat16(x[i + skip]);
      if (std::isnan(x[i + skip])) {
        ASSERT_TRUE(std::isnan(to_float(BFloat16{out[i]})));
      } else {
        ASSERT_EQ(out[i], expected.bits) << x[i + skip];
      }
    }
  }
}

TEST_P(Elementwise, TheChosenInstructionSetIsUsed) {
  const std::string name = cpu::simd_name();
  EXPECT_FALSE(name.empty());
  if (GetParam() == 0) return;
  EXPECT_EQ(name.find("AVX3"), std::string::npos) << name;
  if (GetParam() >= HWY_AVX2) {
    EXPECT_NE(name, "AVX2");
  }
}

TEST_P(Elementwise, ResultsDoNotDependOnThreads) {
  const int64_t rows = 257, dim = 1030;
  const auto gate_up = normal(rows * 2 * dim, 1.0f, 10), weight = normal(dim, 1.0f, 11);
  std::vector<float> one(rows * dim), many(rows * dim), norm_one(rows * dim), norm_many(rows * dim);
  set_num_threads(1);
  cpu::silu_mul(gate_up.data(), rows, dim, one.data());
  cpu::rms_norm(gate_up.data(), weight.data(), 1e-6f, rows, dim, norm_one.data());
  set_num_threads(5);
  cpu::silu_mul(gate_up.data(), rows, dim, many.data());
  cpu::rms_norm(gate_up.data(), weight.data(), 1e-6f, rows, dim, norm_many.data());
  set_num_threads(0);
  EXPECT_EQ(one, many);
  EXPECT_EQ(norm_one, norm_many);
}

#if HWY_ARCH_X86
// Better targets have lower bits: all, AVX2 at most, below AVX2.
INSTANTIATE_TEST_SUITE_P(Targets, Elementwise, ::testing::Values(0, HWY_AVX2 - 1, 2 * HWY_AVX2 - 1));
#else
INSTANTIATE_TEST_SUITE_P(Targets, Elementwise, ::testing::Values(0));
#endif

}  // namespace
}  // namespace rarefy
