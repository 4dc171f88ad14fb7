// Selectors against their double-precision reference: codes, bounds and scores, for many shapes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "core/aligned_buffer.h"
#include "cpu/select/sign_planes.h"
#include "hwy/targets.h"
#include "rarefy/select/registry.h"
#include "ref/select.h"
#include "select/rotated_codes.h"
#include "tests/support/selector_case.h"

namespace rarefy {
namespace {

using test::kNan;
using Case = test::SelectorCase;

constexpr double kEps32 = 0x1p-24;  // unit roundoff of f32
constexpr uint32_t kSeed = 20240;

const std::vector<std::string>& all_selectors() {
  static const std::vector<std::string> names = {"oracle",
                                                 "quest16",
                                                 "quest16:int8",
                                                 "quest16:int4:bound",
                                                 "quest32",
                                                 "quest32:int4",
                                                 "sign",
                                                 "sign64",
                                                 "q2",
                                                 "q2:bound",
                                                 "pq16x4",
                                                 "pq4x8",
                                                 "pq2x6",
                                                 "pq8x5",
                                                 "ds16",
                                                 "ds16:2bit",
                                                 "quest32:int4+sign",
                                                 "quest16:int8:bound+q2:bound@0.3",
                                                 "quest16+sign64",
                                                 "quest32+pq8x4",
                                                 "hard:quest16:int4+ds16@0.2",
                                                 "sign64:bound",
                                                 "magicpig:4x20",
                                                 "magicpig:10x8",
                                                 "socket:5x9",
                                                 "quest16:int4+socket:3x4"};
  return names;
}

TEST(Selectors, EncodingOneTokenAtATimeGivesTheSameBytes) {
  for (const std::string& name : all_selectors()) {
    for (int32_t head_dim : {16, 64, 80, 128}) {
      SCOPED_TRACE(name + " head_dim " + std::to_string(head_dim));
      const Case c(name, head_dim, 1, 64 + 41, DType::bf16, kSeed);
      const auto bytes = static_cast<size_t>(c.selector->block_bytes());
      for (int32_t block = 0; block < c.num_blocks; ++block) {
        AlignedBuffer grown;
        grown.reserve(std::max<size_t>(1, bytes));
        std::memset(grown.data(), 0x5a, grown.capacity());
        BlockKeys keys = c.block_keys(block, 0);
        const int32_t total = keys.num_tokens;
        for (int32_t end = 1; end <= total; end += end % 7 == 0 ? 3 : 1) {
          if (end > total - 3) end = total;
          // Keys that encode() says it does not read are not there.
          const int32_t first_key = c.selector->first_key_read(keys.first_new, end);
          std::vector<float> readable(static_cast<size_t>(end) * head_dim, kNan);
          std::copy(keys.keys + int64_t{first_key} * head_dim, keys.keys + int64_t{end} * head_dim,
                    readable.begin() + int64_t{first_key} * head_dim);
          std::vector<float> readable_values(readable.size(), kNan);
          std::copy(keys.values + int64_t{first_key} * head_dim, keys.values + int64_t{end} * head_dim,
                    readable_values.begin() + int64_t{first_key} * head_dim);
          c.selector->encode(c.head(), {readable.data(), end, keys.first_new, readable_values.data()}, grown.data());
          keys.first_new = end;
        }
        EXPECT_EQ(std::memcmp(grown.data(), c.entry(block), bytes), 0) << "block " << block;
      }
    }
  }
}

TEST(Selectors, ScoresDoNotDependOnHowBlocksArePassed) {
  for (const std::string& name : all_selectors()) {
    for (int32_t group : {1, 3, 4, 7, 16}) {
      SCOPED_TRACE(name + " group " + std::to_string(group));
      const Case c(name, 64, group, 16 * 37, DType::bf16, kSeed + 1);
      const auto all = c.scores();
      std::mt19937 random(kSeed);
      std::vector<int32_t> order(static_cast<size_t>(c.num_blocks));
      for (int32_t block = 0; block < c.num_blocks; ++block) order[block] = block;
      std::shuffle(order.begin(), order.end(), random);
      order.resize(order.size() / 2);
      const auto some = c.scores(order);
      for (int32_t query = 0; query < group; ++query) {
        for (int32_t block : order) {
          EXPECT_EQ(std::memcmp(&all[query][block * c.block_tokens], &some[query][block * c.block_tokens],
                                sizeof(float) * c.block_tokens),
                    0);
        }
      }
    }
  }
}

TEST(Selectors, OracleIsExactWithinRounding) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (int32_t head_dim : {7, 64, 128}) {
      const Case c("oracle", head_dim, 5, 50, dtype, kSeed + 2);
      const auto scores = c.scores();
      for (int32_t query = 0; query < 5; ++query) {
        const auto exact = ref::exact_scores(c.q.data() + query * head_dim, c.keys.data(), c.num_tokens, head_dim);
        for (int32_t token = 0; token < c.num_tokens; ++token) {
          EXPECT_NEAR(scores[query][token], exact.value[token], (head_dim + 2) * kEps32 * exact.magnitude[token]);
        }
      }
    }
  }
}

// A bound is a bound: no key of a page scores higher than the page. And it is the one of the formula.
TEST(Selectors, QuestBoundsEveryKeyOfItsPage) {
  for (const std::string name :
       {"quest16", "quest32", "quest16:int8", "quest32:int8", "quest16:int4", "quest32:int4:bound"}) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      for (int32_t head_dim : {24, 64, 128}) {
        SCOPED_TRACE(name + " " + std::string(to_string(dtype)) + " head_dim " + std::to_string(head_dim));
        const Case c(name, head_dim, 4, 32 * 20 + 5, dtype, kSeed + 3);
        const bool is_bf16 = name == "quest16" || name == "quest32";
        const auto scores = c.scores();
        double worst_slack = 0.0;
        for (int32_t block = 0; block < c.num_blocks; ++block) {
          std::vector<double> minima(head_dim, 1e30), maxima(head_dim, -1e30);
          const BlockKeys keys = c.block_keys(block, 0);
          for (int32_t token = 0; token < keys.num_tokens; ++token) {
            for (int32_t dim = 0; dim < head_dim; ++dim) {
              minima[dim] = std::min(minima[dim], double{keys.keys[token * head_dim + dim]});
              maxima[dim] = std::max(maxima[dim], double{keys.keys[token * head_dim + dim]});
            }
          }
          const double spread =
              *std::max_element(maxima.begin(), maxima.end()) - *std::min_element(minima.begin(), minima.end());
          for (int32_t query = 0; query < 4; ++query) {
            const float* q = c.q.data() + query * head_dim;
            const double bound = ref::page_bound(q, minima.data(), maxima.data(), head_dim);
            double magnitude = 0.0, q_sum = 0.0, largest = 0.0;
            for (int32_t dim = 0; dim < head_dim; ++dim) {
              magnitude +=
                  std::abs(double{q[dim]}) * (std::max(std::abs(minima[dim]), std::abs(maxima[dim])) + 2.0 * spread);
              q_sum += std::abs(double{q[dim]});
              largest = std::max({largest, std::abs(minima[dim]), std::abs(maxima[dim])});
            }
            // int4 multiplies codes with queries that are rounded to 16 bits: half a step of the largest component.
            const bool is_int4 = name.find("int4") != std::string::npos;
            double q_largest = 0.0;
            for (int32_t dim = 0; dim < head_dim; ++dim) q_largest = std::max(q_largest, std::abs(double{q[dim]}));
            const double rounding = (2 * head_dim + 8) * kEps32 * magnitude +
                                    (is_int4 ? 0.51 * q_largest / 32767.0 * head_dim * (spread + largest * 0x1p-7) : 0.0);
            // bf16 keys are their own bounds in bf16; an f32 bound moves by up to 2^-7 of its size; int8 and int4 by one step (the
            // ends and the step of int4 are rounded to bf16).
            const double step = is_int4 ? 1.01 * (spread + largest * 0x1p-7) / 15.0 : 1.001 * spread / 255.0;
            const double slack = is_bf16 ? (dtype == DType::bf16 ? 0.0 : magnitude * 0x1p-7) : q_sum * step;
            for (int32_t token = 0; token < c.block_tokens; ++token) {
              const double score = scores[query][block * c.block_tokens + token];
              EXPECT_GE(score, bound - rounding);
              EXPECT_LE(score, bound + slack + rounding);
              worst_slack = std::max(worst_slack, score - bound);
            }
            const auto exact_scores = ref::exact_scores(q, keys.keys, keys.num_tokens, head_dim);
            for (double value : exact_scores.value) EXPECT_GE(scores[query][block * c.block_tokens], value - rounding);
          }
        }
        if (!is_bf16) {
          EXPECT_GT(worst_slack, 0.0);
        }
      }
    }
  }
}

struct StoredCodes {
  std::vector<int32_t> codes;  // [head_dim]
  double scale = 0.0;
};

StoredCodes read_codes(const Case& c, const RotatedCodeSelector& selector, int32_t bits, int32_t token) {
  StoredCodes result;
  const auto* entry = reinterpret_cast<const uint8_t*>(c.entry(token / 16));
  const int32_t dims_per_nibble = 4 / bits;
  for (int32_t dim = 0; dim < c.shape.head_dim; ++dim) {
    const int32_t nibble_index = dim / dims_per_nibble;
    const uint32_t byte = entry[cpu::nibble_code_offset(nibble_index / 2, token % 16)];
    const uint32_t nibble = nibble_index % 2 == 0 ? byte & 15u : byte >> 4;
    result.codes.push_back(static_cast<int32_t>((nibble >> (dim % dims_per_nibble * bits)) & ((1u << bits) - 1u)));
  }
  Float16 scale;
  std::memcpy(&scale.bits, entry + selector.num_lanes() * 16 + token % 16 * 2, 2);
  result.scale = to_float(scale);
  return result;
}

class RotatedCodes : public testing::TestWithParam<std::tuple<const char*, int32_t, int32_t>> {};

TEST_P(RotatedCodes, CodesScalesAndScoresMatchTheReference) {
  const auto [name, head_dim, group] = GetParam();
  const CodeFormat& format = std::string(name) == "sign" ? kSignCodes : kTwoBitCodes;
  const Case c(name, head_dim, group, 16 * 9 + 3, DType::bf16, kSeed + 4);
  const auto& selector = dynamic_cast<const RotatedCodeSelector&>(*c.selector);
  const Rotation& rotation = selector.rotation();
  const auto scores = c.scores();
  const cpu::NibbleTables tables = selector.tables(c.state.data());
  const int32_t num_groups = head_dim / format.dims_per_group();
  std::vector<std::vector<double>> rotated_q;
  rotated_q.reserve(static_cast<size_t>(group));
  for (int32_t query = 0; query < group; ++query) {
    rotated_q.push_back(ref::rotate(c.q.data() + query * head_dim, rotation.factors(), rotation.block_sizes()));
  }

  for (int32_t token = 0; token < c.num_tokens; ++token) {
    const StoredCodes stored = read_codes(c, selector, format.bits, token);
    const auto r = ref::rotate(c.keys.data() + int64_t{token} * head_dim, rotation.factors(), rotation.block_sizes());
    double norm = 0.0, magnitude = 0.0;
    for (double value : r) norm += value * value;
    for (int32_t dim = 0; dim < head_dim; ++dim) magnitude += std::abs(double{c.keys[int64_t{token} * head_dim + dim]});
    const double rms = std::sqrt(norm / head_dim);
    // Each of two rounds is a product and log2(head_dim) <= 8 sums: 2 * 9 units of the largest possible sum.
    const double rounding = 24 * kEps32 * magnitude;
    double product = 0.0, level_norm = 0.0;
    for (int32_t dim = 0; dim < head_dim; ++dim) {
      const double level = format.levels[stored.codes[dim]];
      const double cut = format.bits == 2 ? format.cut * rms : 0.0;
      if (std::abs(r[dim]) > rounding) {
        EXPECT_EQ(level > 0.0, r[dim] > 0.0) << "token " << token << " dim " << dim;
      }
      if (format.bits == 2 && std::abs(std::abs(r[dim]) - cut) > rounding + 16 * kEps32 * cut) {
        EXPECT_EQ(std::abs(level) > 1.0, std::abs(r[dim]) > cut) << "token " << token << " dim " << dim;
      }
      product += level * r[dim];
      level_norm += level * level;
    }
    // Least squares: no other multiple of the levels is closer to r. f16 keeps 11 bits.
    EXPECT_NEAR(stored.scale, product / level_norm, 0x1p-11 * product / level_norm + 2 * rounding);

    for (int32_t query = 0; query < group; ++query) {
      // The integer sum, from the tables themselves: the same bits on every instruction set.
      const uint8_t* low = tables.tables + query * cpu::nibble_table_bytes(tables.num_lanes);
      const uint8_t* high = low + tables.num_lanes * 16;
      const auto* entry = reinterpret_cast<const uint8_t*>(c.entry(token / 16));
      int32_t sum = 0;
      for (int32_t lane = 0; lane < tables.num_lanes; ++lane) {
        const uint32_t byte = entry[cpu::nibble_code_offset(lane, token % 16)];
        sum += low[lane * 16 + (byte & 15u)] + high[lane * 16 + (byte >> 4)] - 2 * cpu::kNibbleTableMiddle;
      }
      const float expected = static_cast<float>(stored.scale) * (static_cast<float>(sum) * tables.steps[query]);
      EXPECT_EQ(scores[query][token], expected) << "token " << token << " query " << query;

      double exact = 0.0, q_norm = 0.0;
      for (int32_t dim = 0; dim < head_dim; ++dim) {
        exact += format.levels[stored.codes[dim]] * rotated_q[query][dim];
        q_norm += std::abs(rotated_q[query][dim]);
      }
      const double bound =
          stored.scale * (0.5 * tables.steps[query] * num_groups * (1 + 1e-4) + 32 * kEps32 * q_norm * 1.6);
      EXPECT_NEAR(scores[query][token], stored.scale * exact, bound) << "token " << token << " query " << query;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, RotatedCodes,
                         testing::Combine(testing::Values("sign", "q2"), testing::Values(8, 16, 32, 64, 80, 96, 128, 256),
                                          testing::Values(1, 2, 3, 4, 7, 16)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_head_dim" +
                                  std::to_string(std::get<1>(info.param)) + "_group" +
                                  std::to_string(std::get<2>(info.param));
                         });

// sign64: the score is q . mean + scale * (q . signs), from the numbers that the entry stores; and the mean is one of its keys.
TEST(CentredSigns, ScoresMatchTheReference) {
  for (int32_t head_dim : {12, 16, 40, 64, 80, 96, 128, 192, 256, 320}) {
    for (int32_t group : {1, 2, 4, 7}) {
      SCOPED_TRACE("head_dim " + std::to_string(head_dim) + " group " + std::to_string(group));
      const Case c("sign64", head_dim, group, 64 * 5 + 37, DType::bf16, kSeed + 7);
      const auto scores = c.scores();
      const Rotation rotation(head_dim);
      const int32_t num_planes = cpu::num_sign_planes(head_dim);
      const int64_t codes_offset = c.selector->block_bytes() - cpu::plane_block_bytes(num_planes);
      for (int32_t query = 0; query < group; ++query) {
        const auto q = ref::rotate(c.q.data() + query * head_dim, rotation.factors(), rotation.block_sizes());
        double q_norm = 0.0, largest = 0.0, largest_sum = 0.0;  // of 64 dimensions
        for (int32_t first = 0; first < head_dim; first += 64) {
          double sum = 0.0;
          for (int32_t dim = first; dim < std::min(head_dim, first + 64); ++dim) {
            sum += std::abs(q[dim]);
            largest = std::max(largest, std::abs(q[dim]));
          }
          largest_sum = std::max(largest_sum, sum);
          q_norm += sum;
        }
        // Half a step for each of the three groups of a plane; the step is such that 64 dimensions fit 127 of them.
        const double table_error = 1.5 * num_planes * largest_sum / 114.0 * (1 + 1e-4);
        const double mean_error =
            0.5 * largest / 32767.0 * (1 + 1e-4) * head_dim;  // times the largest component of the mean
        for (int32_t token = 0; token < c.num_tokens; ++token) {
          const auto* entry = reinterpret_cast<const uint8_t*>(c.entry(token / 64));
          const auto* codes = entry + codes_offset;
          float step = 0.0f;
          std::memcpy(&step, entry, sizeof(step));
          double mean = 0.0, signs = 0.0, mean_magnitude = 0.0;
          for (int32_t dim = 0; dim < head_dim; ++dim) {
            const uint32_t packed = entry[4 + dim % (head_dim / 2)];
            const int32_t level = static_cast<int32_t>(dim < head_dim / 2 ? packed & 15u : packed >> 4) - 7;
            mean += q[dim] * level * step;
            mean_magnitude += std::abs(q[dim]) * 22 * step;
            const uint32_t byte = codes[cpu::plane_code_offset(dim / 8, token % 64)];
            signs += (byte >> (dim % 8) & 1u) != 0 ? q[dim] : -q[dim];
          }
          const double scale = cpu::e4m4_to_float(codes[cpu::plane_scale_offset(num_planes, token % 64)]);
          const double rounding = 2 * (head_dim + 8) * kEps32 * (mean_magnitude + scale * q_norm);
          EXPECT_NEAR(scores[query][token], mean + scale * signs, scale * table_error + 7 * step * mean_error + rounding)
              << "token " << token;
        }
      }
    }
  }
}

// Scores of one selector for all keys: [num_queries][num_keys].
std::vector<std::vector<float>> score_all(const std::string& name, const SelectorShape& shape,
                                          const std::vector<float>& keys, const std::vector<float>& q) {
  const auto selector = *make_selector(name, shape);
  const int32_t head_dim = shape.head_dim, block_tokens = selector->block_tokens();
  const int64_t num_keys = static_cast<int64_t>(keys.size()) / head_dim;
  std::vector<std::vector<float>> scores(q.size() / static_cast<size_t>(head_dim));
  AlignedBuffer entry, state;
  std::vector<float> block_scores(static_cast<size_t>(block_tokens));
  for (int64_t first = 0; first < num_keys; first += block_tokens) {
    const std::byte* entries[] = {entry.reserve(static_cast<size_t>(selector->block_bytes()))};
    selector->encode({0, 0}, {keys.data() + first * head_dim, block_tokens, 0}, entry.data());
    for (size_t query = 0; query < scores.size(); ++query) {
      selector->prepare({0, 0}, q.data() + query * static_cast<size_t>(head_dim),
                        state.reserve(selector->query_state_bytes()));
      selector->score(state.data(), {{0, 0}, 1, 0, entries, nullptr, 0}, block_scores.data(), block_tokens);
      scores[query].insert(scores[query].end(), block_scores.begin(), block_scores.end());
    }
  }
  return scores;
}

// Keys that share a direction of twice the length of what tells them apart.
std::vector<float> shared_direction_keys(int32_t num_keys, int32_t head_dim, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> shared(static_cast<size_t>(head_dim)), keys;
  for (float& value : shared) value = 2.0f * normal(random);
  for (int32_t i = 0; i < num_keys * head_dim; ++i)
    keys.push_back(shared[static_cast<size_t>(i % head_dim)] + normal(random));
  return keys;
}

// What is left after the mean is shorter than the key. Mean squares of the errors over random queries: (1 - 2 / pi) d for
// sign64, (1 - 2 / pi) 5 d for sign, whose ratio is the square of 0.45.
TEST(CentredSigns, BeatPlainSignsOnKeysThatShareADirection) {
  const int32_t head_dim = 64, num_keys = 64 * 20, num_queries = 32;
  std::mt19937 random(kSeed);
  const std::vector<float> keys = shared_direction_keys(num_keys, head_dim, random);
  std::normal_distribution<float> normal;
  std::vector<float> q;
  for (int32_t i = 0; i < num_queries * head_dim; ++i) q.push_back(normal(random));
  std::vector<double> errors;
  for (const std::string name : {"sign", "sign64"}) {
    const auto scores = score_all(name, {1, 1, 1, head_dim, DType::f32}, keys, q);
    double error = 0.0;
    for (int32_t query = 0; query < num_queries; ++query) {
      const auto exact = ref::exact_scores(q.data() + query * head_dim, keys.data(), num_keys, head_dim);
      for (int32_t token = 0; token < num_keys; ++token) error += std::pow(scores[query][token] - exact.value[token], 2);
    }
    errors.push_back(std::sqrt(error));
  }
  EXPECT_LT(errors[1], 0.6 * errors[0]);
}

// One outlier channel must not decide the signs of all components: some have to stay small. A component of a channel after two
// rounds is a sum of 64 signs, below half a standard deviation with probability 0.29; the magnitudes are the same for every
// channel, in another order, so that the share is that of one draw of 64. After one round all magnitudes are equal, and none is.
TEST(RotationQuality, SpreadsOneChannelUnevenly) {
  for (int32_t head_dim : {64, 128}) {
    const Rotation rotation(head_dim);
    double small = 0.0;
    for (int32_t channel = 0; channel < head_dim; ++channel) {
      std::vector<float> x(static_cast<size_t>(head_dim)), rotated(x.size());
      x[static_cast<size_t>(channel)] = std::sqrt(static_cast<float>(head_dim));
      rotation.apply(x.data(), rotated.data());
      for (float value : rotated) small += std::abs(value) < 0.5f ? 1.0 : 0.0;
    }
    EXPECT_GT(small / (head_dim * head_dim), 0.1) << head_dim;
    EXPECT_LT(small / (head_dim * head_dim), 0.5) << head_dim;
  }
}

TEST(RotatedCodeTargets, ScoresHaveTheSameBitsOnEveryInstructionSet) {
  for (const std::string name : {"sign", "q2"}) {
    for (int32_t head_dim : {16, 80, 128}) {
      const Case best(name, head_dim, 5, 16 * 21, DType::bf16, kSeed + 6);
      const auto expected = best.scores();
      for (int64_t disabled :
           {int64_t{HWY_AVX3_DL}, int64_t{HWY_AVX3_DL | HWY_AVX3}, int64_t{HWY_AVX3_DL | HWY_AVX3 | HWY_AVX2}}) {
        hwy::DisableTargets(disabled);
        const Case other(name, head_dim, 5, 16 * 21, DType::bf16, kSeed + 6);
        EXPECT_EQ(other.scores(), expected) << name << " head_dim " << head_dim << " without targets " << disabled;
        EXPECT_EQ(std::memcmp(other.index.data(), best.index.data(), best.index.capacity()), 0);
        hwy::DisableTargets(0);
      }
    }
  }
}

// The integer sums, and their products with step and scale, are the same on every instruction set (with an offset the last
// addition may be fused or not).
TEST(SignPlaneTargets, ScoresHaveTheSameBitsOnEveryInstructionSet) {
  constexpr int32_t kQueries = 7, kBlocks = 5;
  std::mt19937 random(kSeed + 8);
  std::normal_distribution<float> normal;
  for (int32_t head_dim : {4, 20, 64, 80, 128, 136, 256, 1024}) {
    const int32_t num_planes = cpu::num_sign_planes(head_dim);
    const int64_t block_bytes = cpu::plane_block_bytes(num_planes);
    std::vector<std::byte> memory(static_cast<size_t>(kBlocks * block_bytes));
    for (std::byte& value : memory) value = static_cast<std::byte>(random());
    std::vector<const std::byte*> entries;
    entries.reserve(kBlocks);
    for (int32_t block = 0; block < kBlocks; ++block) entries.push_back(memory.data() + block * block_bytes);
    std::vector<float> q(static_cast<size_t>(kQueries) * head_dim);
    for (float& value : q) value = normal(random);
    const std::vector<float> offsets(kQueries * kBlocks, 0.0f);
    const auto scores = [&] {
      AlignedBuffer table_memory;
      const int64_t table_bytes = cpu::plane_table_bytes(num_planes);
      auto* tables = reinterpret_cast<int8_t*>(table_memory.reserve(static_cast<size_t>(kQueries * table_bytes)));
      std::vector<float> steps;
      steps.reserve(kQueries);
      for (int32_t query = 0; query < kQueries; ++query) {
        steps.push_back(cpu::make_plane_table(q.data() + query * head_dim, head_dim, tables + query * table_bytes));
      }
      std::vector<float> result(static_cast<size_t>(kQueries) * kBlocks * 64);
      cpu::PlaneBlocks blocks;
      blocks.entries = entries.data();
      blocks.num_blocks = kBlocks;
      blocks.offsets = offsets.data();
      blocks.offset_stride = kBlocks;
      cpu::plane_scores({kQueries, num_planes, tables, steps.data()}, blocks, result.data(), kBlocks * 64);
      std::vector<float> largest(kBlocks * 64, kNan);
      cpu::largest_plane_scores({kQueries, num_planes, tables, steps.data()}, blocks, largest.data());
      for (size_t i = 0; i < largest.size(); ++i) {
        float expected = result[i];
        for (size_t query = 1; query < kQueries; ++query) expected = std::max(expected, result[query * largest.size() + i]);
        EXPECT_EQ(largest[i], expected) << i;
      }
      return result;
    };
    const auto expected = scores();
    EXPECT_NE(expected, std::vector<float>(expected.size(), 0.0f));
    for (int64_t disabled :
         {int64_t{HWY_AVX3_DL}, int64_t{HWY_AVX3_DL | HWY_AVX3}, int64_t{HWY_AVX3_DL | HWY_AVX3 | HWY_AVX2}}) {
      hwy::DisableTargets(disabled);
      EXPECT_EQ(scores(), expected) << "head_dim " << head_dim << " without targets " << disabled;
      hwy::DisableTargets(0);
    }
  }
}

// The largest sums that a query can reach, where a byte would overflow first.
TEST(SignPlaneTargets, SumsOfEqualSignsDoNotOverflow) {
  for (int32_t head_dim : {64, 128}) {
    for (float spike : {1.0f, 100.0f}) {
      std::vector<float> q(static_cast<size_t>(head_dim), 1.0f);
      q[5] = spike;
      const int32_t num_planes = cpu::num_sign_planes(head_dim);
      std::vector<std::byte> entry(static_cast<size_t>(cpu::plane_block_bytes(num_planes)), std::byte{0});
      for (int32_t token = 0; token < 64; ++token) {
        for (int32_t plane = 0; plane < num_planes; ++plane) {
          entry[cpu::plane_code_offset(plane, token)] = token % 2 == 0 ? std::byte{255} : std::byte{0};
        }
        entry[cpu::plane_scale_offset(num_planes, token)] = static_cast<std::byte>(cpu::float_to_e4m4(1.0f));
      }
      AlignedBuffer memory;
      auto* table = reinterpret_cast<int8_t*>(memory.reserve(static_cast<size_t>(cpu::plane_table_bytes(num_planes))));
      const float step = cpu::make_plane_table(q.data(), head_dim, table), zero = 0.0f;
      const std::byte* entries[] = {entry.data()};
      cpu::PlaneBlocks blocks;
      blocks.entries = entries;
      blocks.num_blocks = 1;
      blocks.offsets = &zero;
      blocks.offset_stride = 1;
      std::vector<float> scores(64);
      cpu::plane_scores({1, num_planes, table, &step}, blocks, scores.data(), 64);
      const float sum = static_cast<float>(head_dim - 1) + spike;
      for (int32_t token = 0; token < 64; ++token) {
        EXPECT_NEAR(scores[token], token % 2 == 0 ? sum : -sum, 1.5f * step * static_cast<float>(num_planes)) << token;
      }
    }
  }
}

TEST(RotatedCodeEdges, ZeroKeysZeroQueriesAndNanQueriesAreHarmless) {
  for (const std::string name : {"sign", "sign64", "q2"}) {
    const SelectorShape shape{1, 1, 2, 64, DType::f32};
    const auto selector = *make_selector(name, shape);
    std::vector<float> keys(16 * 64, 0.0f), q(2 * 64, 0.0f);
    for (int32_t dim = 0; dim < 64; ++dim) q[64 + dim] = kNan;
    AlignedBuffer entry, state;
    selector->encode({0, 0}, {keys.data(), 16, 0}, entry.reserve(static_cast<size_t>(selector->block_bytes())));
    selector->prepare({0, 0}, q.data(), state.reserve(selector->query_state_bytes()));
    const std::byte* entries[] = {entry.data()};
    const int32_t block_tokens = selector->block_tokens();
    std::vector<float> scores(static_cast<size_t>(2 * block_tokens), kNan);
    selector->score(state.data(), {{0, 0}, 1, 0, entries, nullptr, 0}, scores.data(), block_tokens);
    for (int32_t token = 0; token < 16; ++token) EXPECT_EQ(scores[token], 0.0f);
  }
}

// On normal keys a score is the expected value of the exact score given the code: regressing the exact score on it gives
// slope 1, and the correlations are those of the quantisers (0.798 and 0.939) less the rounding of the table.
TEST(RotatedCodeQuality, ScoresAreShrunkAsLeastSquaresEstimatesAre) {
  const struct {
    const char* name;
    double correlation;
  } expected[] = {{"sign", 0.798}, {"q2", 0.939}};
  for (const auto& [name, correlation] : expected) {
    for (int32_t head_dim : {64, 128}) {
      const Case c(name, head_dim, 4, 16 * 300, DType::bf16, kSeed + 5, 0.0f);
      const auto scores = c.scores();
      double exact_norm = 0.0, score_norm = 0.0, product = 0.0;
      for (int32_t query = 0; query < 4; ++query) {
        const auto exact = ref::exact_scores(c.q.data() + query * head_dim, c.keys.data(), c.num_tokens, head_dim);
        for (int32_t token = 0; token < c.num_tokens; ++token) {
          exact_norm += exact.value[token] * exact.value[token];
          score_norm += double{scores[query][token]} * scores[query][token];
          product += exact.value[token] * scores[query][token];
        }
      }
      EXPECT_NEAR(product / std::sqrt(exact_norm * score_norm), correlation, 0.01) << name << " " << head_dim;
      EXPECT_NEAR(product / score_norm, 1.0, 0.02) << name << " " << head_dim;
    }
  }
}

}  // namespace
}  // namespace rarefy
