// Gated DeltaNet against the double-precision oracle.
#include "cpu/delta_net/delta_net.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "hwy/targets.h"
#include "rarefy/core/device.h"
#include "ref/delta_net.h"

namespace rarefy {
namespace {

constexpr double kEps = std::numeric_limits<float>::epsilon();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> normal(size_t count, float scale, uint32_t seed) {
  std::mt19937 generator(20261124 + seed);
  std::normal_distribution<float> distribution(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(generator);
  return values;
}

// Every test runs with the best instruction set of the machine and with those below it.
class DeltaNet : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::DisableTargets(GetParam()); }
  void TearDown() override {
    hwy::DisableTargets(0);
    set_num_threads(0);
  }
};

TEST_P(DeltaNet, ConvolutionMatchesReference) {
  for (const int64_t channels : {1, 15, 16, 33, 200}) {
    for (const int32_t taps : {2, 4}) {
      for (const int64_t rows : {1, 2, 3, 4, 50}) {
        for (const bool fresh : {true, false}) {
          const int64_t stride = channels + 3, history = taps - 1;
          const auto packed = normal(rows * channels, 1.0f, 1), weight = normal(taps * channels, 0.5f, 2);
          const auto before = normal(history * channels, 1.0f, 3);
          std::vector<float> x(rows * stride, kNan);  // between rows: never read
          for (int64_t row = 0; row < rows; ++row)
            std::copy_n(packed.begin() + row * channels, channels, x.begin() + row * stride);
          std::vector<float> out(rows * channels, kNan), after(history * channels, kNan), aliased = before;
          cpu::CausalConvArgs args{.x = x.data(),
                                   .x_row_stride = stride,
                                   .weight = weight.data(),
                                   .before = fresh ? nullptr : before.data(),
                                   .num_rows = rows,
                                   .num_channels = channels,
                                   .num_taps = taps,
                                   .out = out.data(),
                                   .after = after.data()};
          cpu::causal_conv_silu(args);
          const auto expected = ref::causal_conv_silu(packed.data(), weight.data(), args.before, rows, channels, taps);
          for (size_t i = 0; i < expected.size(); ++i) {
            // The sum is off by taps roundings of terms below 12; silu's slope is at most 1.1.
            ASSERT_NEAR(out[i], expected[i], 12 * (taps + 1) * kEps + 8 * kEps * std::abs(expected[i])) << i;
          }
          // The last inputs of what came before and these rows.
          std::vector<float> all = fresh ? std::vector<float>(before.size(), 0.0f) : before;
          all.insert(all.end(), packed.begin(), packed.end());
          EXPECT_EQ(after, std::vector<float>(all.end() - history * channels, all.end()));
          if (!fresh) {
            args.before = args.after = aliased.data();
            cpu::causal_conv_silu(args);
            EXPECT_EQ(aliased, after);
          }
        }
      }
    }
  }
}

struct Shape {
  int32_t num_key_heads, num_value_heads, key_head_dim, value_head_dim;
};
constexpr Shape kShapes[] = {{1, 1, 16, 16}, {2, 4, 16, 32}, {1, 3, 48, 16}, {2, 4, 128, 128}};

// Inputs as a layer makes them, in rows with NaN behind.
struct Case {
  Case(const Shape& shape_in, int64_t rows, uint32_t seed) : shape(shape_in), num_rows(rows) {
    const int64_t key_width = int64_t{shape.num_key_heads} * shape.key_head_dim;
    const int64_t value_width = int64_t{shape.num_value_heads} * shape.value_head_dim;
    stride = 2 * key_width + value_width + 5;
    const auto values = normal(rows * stride, 1.0f, seed);
    x = values;
    for (int64_t row = 0; row < rows; ++row) std::fill_n(x.begin() + (row + 1) * stride - 5, 5, kNan);
    cpu::l2_normalise_heads(1.0f / std::sqrt(static_cast<float>(shape.key_head_dim)), rows, stride, shape.num_key_heads,
                            shape.key_head_dim, x.data());
    cpu::l2_normalise_heads(1.0f, rows, stride, shape.num_key_heads, shape.key_head_dim, x.data() + key_width);
    const auto a = normal(rows * shape.num_value_heads, 2.0f, seed + 1), b = normal(a.size(), 2.0f, seed + 2);
    for (size_t i = 0; i < a.size(); ++i) {
      log_decay.push_back(-std::log1p(std::exp(a[i])));
      beta.push_back(1.0f / (1.0f + std::exp(-b[i])));
    }
    log_decay[0] = 0.0f;
    log_decay.back() = -200.0f;  // everything is forgotten
    before = normal(value_width * shape.key_head_dim, 0.3f, seed + 3);
    for (int64_t row = 0; row < rows; ++row) {
      const float* from = x.data() + row * stride;
      q.insert(q.end(), from, from + key_width);
      k.insert(k.end(), from + key_width, from + 2 * key_width);
      v.insert(v.end(), from + 2 * key_width, from + 2 * key_width + value_width);
    }
  }
  cpu::DeltaRuleArgs args(int64_t first, int64_t count, const float* state, float* after, float* out) const {
    const int64_t key_width = int64_t{shape.num_key_heads} * shape.key_head_dim;
    const float* row = x.data() + first * stride;
    return {.q = row,
            .k = row + key_width,
            .v = row + 2 * key_width,
            .row_stride = stride,
            .log_decay = log_decay.data() + first * shape.num_value_heads,
            .beta = beta.data() + first * shape.num_value_heads,
            .before = state,
            .num_rows = count,
            .num_key_heads = shape.num_key_heads,
            .num_value_heads = shape.num_value_heads,
            .key_head_dim = shape.key_head_dim,
            .value_head_dim = shape.value_head_dim,
            .after = after,
            .out = out + first * shape.num_value_heads * shape.value_head_dim};
  }

  Shape shape;
  int64_t num_rows, stride;
  std::vector<float> x, q, k, v, log_decay, beta, before;
};

// A step applies exp(g) (I - beta k k^T), of norm at most 1, and adds beta k v^T: errors add up and never grow. A token
// contributes at most (key_head_dim + kDeltaChunk + 8) roundings of numbers below the largest of values and state.
double bound(const Case& c, const std::vector<double>& state) {
  double largest = 1.0;
  for (const float value : c.v) largest = std::max(largest, std::abs(static_cast<double>(value)));
  for (const double value : state) largest = std::max(largest, std::abs(value));
  return 0.5 * kEps * (c.shape.key_head_dim + cpu::kDeltaChunk + 8) * std::sqrt(static_cast<double>(c.num_rows)) * largest;
}

TEST_P(DeltaNet, DeltaRuleMatchesReference) {
  uint32_t seed = 100;
  for (const Shape& shape : kShapes) {
    for (const int64_t rows : {1, 2, 7, 8, 9, 63, 64, 65, 72, 150}) {
      for (const bool fresh : {true, false}) {
        const Case c(shape, rows, seed += 10);
        const size_t state_size = c.before.size();
        std::vector<float> out(rows * shape.num_value_heads * shape.value_head_dim, kNan), after(state_size, kNan);
        AlignedBuffer scratch;
        ASSERT_TRUE(cpu::delta_rule(c.args(0, rows, fresh ? nullptr : c.before.data(), after.data(), out.data()), scratch));
        std::vector<double> state(state_size, 0.0);
        if (!fresh) state.assign(c.before.begin(), c.before.end());
        const auto expected =
            ref::delta_rule({c.q.data(), c.k.data(), c.v.data(), c.log_decay.data(), c.beta.data(), rows,
                             shape.num_key_heads, shape.num_value_heads, shape.key_head_dim, shape.value_head_dim},
                            state);
        const double tolerance = bound(c, state);
        for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(out[i], expected[i], tolerance) << rows << " at " << i;
        for (size_t i = 0; i < state_size; ++i) ASSERT_NEAR(after[i], state[i], tolerance) << rows << " at " << i;

        // In two parts, the state updated in place.
        for (const int64_t first : {int64_t{1}, rows / 2, rows - 1}) {
          if (first < 1 || first >= rows) continue;
          std::vector<float> parts(out.size(), kNan), running = c.before;
          ASSERT_TRUE(
              cpu::delta_rule(c.args(0, first, fresh ? nullptr : running.data(), running.data(), parts.data()), scratch));
          ASSERT_TRUE(cpu::delta_rule(c.args(first, rows - first, running.data(), running.data(), parts.data()), scratch));
          for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(parts[i], expected[i], tolerance) << first;
          for (size_t i = 0; i < state_size; ++i) ASSERT_NEAR(running[i], state[i], tolerance) << first;
        }
      }
    }
  }
}

TEST_P(DeltaNet, ThreadsDoNotChangeABit) {
  const Case c({2, 6, 64, 64}, 100, 7);
  std::vector<float> expected, expected_state;
  for (const int32_t threads : {1, 2, 5}) {
    set_num_threads(threads);
    std::vector<float> out(size_t{100} * 6 * 64, kNan), after(c.before.size(), kNan);
    AlignedBuffer scratch;
    ASSERT_TRUE(cpu::delta_rule(c.args(0, 100, c.before.data(), after.data(), out.data()), scratch));
    if (threads == 1) {
      expected = out;
      expected_state = after;
    }
    EXPECT_EQ(out, expected);
    EXPECT_EQ(after, expected_state);
  }
}

TEST_P(DeltaNet, NormsMatchReference) {
  for (const int32_t dim : {16, 48, 128}) {
    const int64_t rows = 5, heads = 3, stride = heads * dim + 7;
    const auto x = normal(rows * heads * dim, 2.0f, 20), weight = normal(dim, 1.0f, 21);
    std::vector<float> gate = normal(rows * stride, 3.0f, 22), packed_gate, inout = x;
    for (int64_t row = 0; row < rows; ++row) {
      std::fill_n(gate.begin() + (row + 1) * stride - 7, 7, kNan);
      packed_gate.insert(packed_gate.end(), gate.begin() + row * stride, gate.begin() + row * stride + heads * dim);
    }
    cpu::gated_rms_norm({.weight = weight.data(),
                         .gate = gate.data(),
                         .gate_row_stride = stride,
                         .epsilon = 1e-6f,
                         .num_rows = rows,
                         .num_heads = static_cast<int32_t>(heads),
                         .head_dim = dim,
                         .inout = inout.data()});
    const auto expected = ref::gated_rms_norm(x.data(), weight.data(), packed_gate.data(), 1e-6f, rows * heads, dim);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(inout[i], expected[i], (0.5 * dim + 16) * kEps * std::abs(expected[i])) << i;
    }

    std::vector<float> unit = x;
    cpu::l2_normalise_heads(0.25f, rows, heads * dim, static_cast<int32_t>(heads), dim, unit.data());
    const auto exact = ref::l2_normalise(0.25, x.data(), rows * heads, dim);
    for (size_t i = 0; i < exact.size(); ++i) {
      ASSERT_NEAR(unit[i], exact[i], (0.5 * dim + 6) * kEps * std::abs(exact[i])) << i;
    }
  }
}

#if HWY_ARCH_X86
// Better targets have lower bits: all, AVX2 at most, below AVX2.
INSTANTIATE_TEST_SUITE_P(Targets, DeltaNet, ::testing::Values(0, HWY_AVX2 - 1, 2 * HWY_AVX2 - 1));
#else
INSTANTIATE_TEST_SUITE_P(Targets, DeltaNet, ::testing::Values(0));
#endif

}  // namespace
}  // namespace rarefy
