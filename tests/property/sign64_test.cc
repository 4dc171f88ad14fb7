// sign64 against its double-precision reference: the planes that count, scores, and the same sums on every instruction set.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <utility>

#include "core/aligned_buffer.h"
#include "cpu/select/sign_planes.h"
#include "hwy/targets.h"
#include "rarefy/select/registry.h"
#include "ref/select.h"
#include "select/rotation.h"
#include "tests/support/selector_case.h"

namespace rarefy {
namespace {

using test::kNan;
using Case = test::SelectorCase;

constexpr double kEps32 = 0x1p-24;  // unit roundoff of f32
constexpr uint32_t kSeed = 20240;

// The planes in which the queries of a group are longest, ascending. rotated [group][head_dim]
std::vector<uint8_t> longest_planes(const std::vector<std::vector<double>>& rotated, int32_t head_dim, int32_t count) {
  const int32_t num_planes = cpu::num_sign_planes(head_dim);
  std::vector<std::pair<double, uint8_t>> squares;
  for (int32_t plane = 0; plane < num_planes; ++plane) {
    double sum = 0.0;
    for (const auto& q : rotated) {
      for (int32_t dim = 8 * plane; dim < std::min(head_dim, 8 * plane + 8); ++dim) sum += q[dim] * q[dim];
    }
    squares.emplace_back(-sum, static_cast<uint8_t>(plane));
  }
  std::sort(squares.begin(), squares.end());
  std::vector<uint8_t> planes;
  for (int32_t i = 0; i < count; ++i) planes.push_back(squares[i].second);
  std::sort(planes.begin(), planes.end());
  return planes;
}

// sign64: the score is q . mean + scale * (q . signs), from the numbers that the entry stores, of the planes that count; and the mean
// is one of its keys.
TEST(CentredSigns, ScoresMatchTheReference) {
  for (const double share : {1.0, 0.875, 0.75, 0.3}) {
    for (int32_t head_dim : {12, 16, 40, 64, 80, 96, 128, 192, 256, 320}) {
      for (int32_t group : {1, 2, 4, 7}) {
        const std::string name = share == 1.0 ? "sign64" : "sign64:dims=" + std::to_string(share);
        SCOPED_TRACE(name + " head_dim " + std::to_string(head_dim) + " group " + std::to_string(group));
        const Case c(name, head_dim, group, 64 * 5 + 37, DType::bf16, kSeed + 7);
        const auto scores = c.scores();
        const Rotation rotation(head_dim);
        const int32_t num_planes = cpu::num_sign_planes(head_dim);
        std::vector<std::vector<double>> rotated;
        for (int32_t query = 0; query < group; ++query) {
          rotated.push_back(ref::rotate(c.q.data() + query * head_dim, rotation.factors(), rotation.block_sizes()));
        }
        const auto count = std::max(1, static_cast<int32_t>(std::lround(share * num_planes)));
        const auto planes = longest_planes(rotated, head_dim, count);
        std::vector<bool> counts(static_cast<size_t>(num_planes), false);
        for (uint8_t plane : planes) counts[plane] = true;
        for (int32_t query = 0; query < group; ++query) {
          const auto& q = rotated[query];
          double q_norm = 0.0, largest = 0.0, largest_sum = 0.0;  // of a chunk of planes
          for (double value : q) {
            q_norm += std::abs(value);
            largest = std::max(largest, std::abs(value));
          }
          for (int32_t first = 0; first < count; first += cpu::chunk_planes(count)) {
            double sum = 0.0;
            for (int32_t i = first; i < std::min(count, first + cpu::chunk_planes(count)); ++i) {
              for (int32_t dim = 8 * planes[i]; dim < std::min(head_dim, 8 * planes[i] + 8); ++dim) sum += std::abs(q[dim]);
            }
            largest_sum = std::max(largest_sum, sum);
          }
          // Half a step for each of the three groups of a plane; the step is such that a chunk fits 127 of them.
          const double table_error = 1.5 * count * largest_sum / 114.0 * (1 + 1e-4);
          const double mean_error =
              0.5 * largest / 32767.0 * (1 + 1e-4) * head_dim;  // times the largest component of the mean
          for (int32_t token = 0; token < c.num_tokens; ++token) {
            const auto* entry = reinterpret_cast<const uint8_t*>(c.entry(token / 64));
            const uint8_t* packed_mean = entry + cpu::plane_block_bytes(num_planes);
            float step = 0.0f;
            std::memcpy(&step, packed_mean + head_dim / 2, sizeof(step));
            double mean = 0.0, signs = 0.0, mean_magnitude = 0.0;
            for (int32_t dim = 0; dim < head_dim; ++dim) {
              const uint32_t packed = packed_mean[dim % (head_dim / 2)];
              const int32_t level = static_cast<int32_t>(dim < head_dim / 2 ? packed & 15u : packed >> 4) - 7;
              mean += q[dim] * level * step;
              mean_magnitude += std::abs(q[dim]) * 22 * step;
              if (!counts[static_cast<size_t>(dim) / 8]) continue;
              const uint32_t byte = entry[cpu::plane_code_offset(dim / 8, token % 64)];
              signs += (byte >> (dim % 8) & 1u) != 0 ? q[dim] : -q[dim];
            }
            const double scale = cpu::e4m4_to_float(entry[cpu::plane_scale_offset(num_planes, token % 64)]);
            const double rounding = 2 * (head_dim + 8) * kEps32 * (mean_magnitude + scale * q_norm);
            EXPECT_NEAR(scores[query][token], mean + scale * signs, scale * table_error + 7 * step * mean_error + rounding)
                << "token " << token;
          }
        }
      }
    }
  }
}

// What is left out is neither counted nor needed: NaN there would not show, but its bytes may be anything.
TEST(CentredSigns, PlanesThatAreLeftOutAreNotRead) {
  const SelectorShape shape{1, 1, 4, 128, DType::f32};
  const auto selector = *make_selector("sign64:dims=0.75", shape);
  EXPECT_EQ(selector->name(), "sign64:dims=0.75");
  EXPECT_DOUBLE_EQ((*make_selector("sign64", shape))->bytes_per_token() - selector->bytes_per_token(), 4.0);
  std::mt19937 random(kSeed + 12);
  std::normal_distribution<float> normal;
  std::vector<float> keys(64 * 128), q(4 * 128);
  for (float& value : keys) value = normal(random);
  for (float& value : q) value = normal(random);
  AlignedBuffer entry, state;
  selector->encode({0, 0}, {keys.data(), 64, 0}, entry.reserve(static_cast<size_t>(selector->block_bytes())));
  selector->prepare({0, 0}, q.data(), state.reserve(selector->query_state_bytes()));
  const std::byte* entries[] = {entry.data()};
  const auto scores = [&] {
    std::vector<float> result(4 * 64, kNan);
    selector->score(state.data(), {{0, 0}, 1, 0, entries, nullptr, 0}, result.data(), 64);
    return result;
  };
  const Rotation rotation(128);
  std::vector<std::vector<double>> rotated;
  for (int32_t query = 0; query < 4; ++query) {
    rotated.push_back(ref::rotate(q.data() + query * 128, rotation.factors(), rotation.block_sizes()));
  }
  const auto planes = longest_planes(rotated, 128, 12);
  const auto expected = scores();
  for (int32_t plane = 0; plane < 16; ++plane) {
    auto* line = entry.data() + int64_t{plane} * cpu::kPlaneTokens;
    for (int32_t i = 0; i < cpu::kPlaneTokens; ++i) line[i] = ~line[i];
    const bool counts = std::find(planes.begin(), planes.end(), plane) != planes.end();
    EXPECT_EQ(scores() != expected, counts) << plane;
    for (int32_t i = 0; i < cpu::kPlaneTokens; ++i) line[i] = ~line[i];
  }
}

TEST(CentredSigns, RefusesOtherOptions) {
  const SelectorShape shape{1, 1, 4, 128, DType::f32};
  for (const std::string options :
       {"dims=", "dims=0", "dims=-0.5", "dims=1.01", "dims=nan", "dims=0.5x", "dims=0.5:bound", "all"}) {
    const auto selector = make_selector("sign64:" + options, shape);
    ASSERT_FALSE(selector) << options;
    EXPECT_NE(selector.status().message().find("dims=F with 0 < F <= 1"), std::string::npos) << selector.status().message();
    EXPECT_NE(selector.status().message().find("'" + options + "'"), std::string::npos) << selector.status().message();
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

// The integer sums, and their products with step and scale, are the same on every instruction set (with an offset the last
// addition may be fused or not).
TEST(SignPlaneTargets, ScoresHaveTheSameBitsOnEveryInstructionSet) {
  constexpr int32_t kQueries = 7, kBlocks = 5;
  std::mt19937 random(kSeed + 8);
  std::normal_distribution<float> normal;
  for (const auto& [head_dim, all_planes] : {std::pair{4, true},
                                             {20, true},
                                             {64, true},
                                             {64, false},
                                             {80, true},
                                             {128, true},
                                             {128, false},
                                             {136, false},
                                             {256, true},
                                             {1024, true},
                                             {1024, false}}) {
    const int32_t entry_planes = cpu::num_sign_planes(head_dim);
    const int64_t block_bytes = cpu::plane_block_bytes(entry_planes);
    // All planes, or all but every eighth.
    std::vector<uint8_t> planes;
    for (int32_t plane = 0; plane < entry_planes; ++plane) {
      if (all_planes || plane % 8 != 3) planes.push_back(static_cast<uint8_t>(plane));
    }
    const auto num_planes = static_cast<int32_t>(planes.size());
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
        steps.push_back(cpu::make_plane_table(q.data() + query * head_dim, head_dim, planes.data(), num_planes,
                                              tables + query * table_bytes));
      }
      std::vector<float> result(static_cast<size_t>(kQueries) * kBlocks * 64);
      cpu::PlaneBlocks blocks;
      blocks.entries = entries.data();
      blocks.num_blocks = kBlocks;
      blocks.offsets = offsets.data();
      blocks.offset_stride = kBlocks;
      cpu::plane_scores({kQueries, num_planes, planes.data(), entry_planes, tables, steps.data()}, blocks, result.data(),
                        kBlocks * 64);
      std::vector<float> largest(kBlocks * 64, kNan);
      cpu::largest_plane_scores({kQueries, num_planes, planes.data(), entry_planes, tables, steps.data()}, blocks,
                                largest.data());
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
      std::vector<uint8_t> planes(static_cast<size_t>(num_planes));
      std::iota(planes.begin(), planes.end(), uint8_t{0});
      const float step = cpu::make_plane_table(q.data(), head_dim, planes.data(), num_planes, table), zero = 0.0f;
      const std::byte* entries[] = {entry.data()};
      cpu::PlaneBlocks blocks;
      blocks.entries = entries;
      blocks.num_blocks = 1;
      blocks.offsets = &zero;
      blocks.offset_stride = 1;
      std::vector<float> scores(64);
      cpu::plane_scores({1, num_planes, planes.data(), num_planes, table, &step}, blocks, scores.data(), 64);
      const float sum = static_cast<float>(head_dim - 1) + spike;
      for (int32_t token = 0; token < 64; ++token) {
        EXPECT_NEAR(scores[token], token % 2 == 0 ? sum : -sum, 1.5f * step * static_cast<float>(num_planes)) << token;
      }
    }
  }
}

}  // namespace
}  // namespace rarefy
