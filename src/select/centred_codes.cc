#include "select/centred_codes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

#include "cpu/select/key_rows.h"
#include "select/builtin_selectors.h"
#include "select/outward.h"

namespace rarefy {
namespace {

constexpr int32_t kMaxHeadDim = 1024;
constexpr float kMeanSteps = 7.0f;   // 4 bits: -7 .. 7
constexpr float kMeanMiddle = 7.0f;  // stored as 0 .. 14
constexpr uint32_t kMeanZero = 7;
constexpr int32_t kScoreBlocks = 8;  // blocks scored while as many are fetched

// The mean in units of its step: byte j holds dimension j in its low half and dimension j + head_dim / 2 in its high half.
// `packed` [head_dim / 2] bytes, `mean` [head_dim] u8
void unpack_mean(const std::byte* packed, int32_t head_dim, uint8_t* mean) {
  const int32_t half = head_dim / 2;
  for (int32_t j = 0; j < half; ++j) mean[j] = static_cast<uint8_t>(packed[j] & std::byte{15});
  for (int32_t j = 0; j < half; ++j) mean[half + j] = static_cast<uint8_t>(packed[j] >> 4);
}

// Writes the signs and the scale of one token: `row` [head_dim] f32, `block` [plane_block_bytes] u8
void store_signs(const float* row, int32_t head_dim, int32_t token, uint8_t* block) {
  const int32_t num_planes = cpu::num_sign_planes(head_dim);
  float sum = 0.0f;
  for (int32_t plane = 0; plane < num_planes; ++plane) {
    uint32_t byte = 0;
    for (int32_t j = 0; j < std::min(cpu::kPlaneDims, head_dim - plane * cpu::kPlaneDims); ++j) {
      const float value = row[plane * cpu::kPlaneDims + j];
      byte |= (value >= 0.0f ? 1u : 0u) << j;
      sum += std::abs(value);
    }
    block[cpu::plane_code_offset(plane, token)] = static_cast<uint8_t>(byte);
  }
  block[cpu::plane_scale_offset(num_planes, token)] = cpu::float_to_e4m4(sum / static_cast<float>(head_dim));
}

// A query state: what the mean needs, then the tables.
struct StateHead {
  float steps[kMaxGroup];       // [group] f32; of the tables
  float mean_steps[kMaxGroup];  // [group] f32; of the rounded query
  float q_sums[kMaxGroup];      // [group] f32; sum of the rounded query
  float norms[kMaxGroup];       // [group] f32; |q|, rounded up
  float abs_sums[kMaxGroup];    // [group] f32; sum of |q_d|, rounded up
};
static_assert(sizeof(StateHead) % 64 == 0);

int64_t rounded_bytes(const SelectorShape& shape) {
  return (int64_t{shape.group} * shape.head_dim * static_cast<int64_t>(sizeof(int16_t)) + 63) / 64 * 64;
}

}  // namespace

CentredSignSelector::CentredSignSelector(const SelectorShape& shape, bool bounds)
    : shape_(shape), rotation_(shape.head_dim), num_planes_(cpu::num_sign_planes(shape.head_dim)), bounds_(bounds) {}

void CentredSignSelector::store_mean(const float* rotated, int32_t num_tokens, std::byte* entry) const {
  const int32_t half = shape_.head_dim / 2;
  if (num_tokens == 0) {
    const float none = 0.0f;
    std::memcpy(entry, &none, sizeof(none));
    std::fill_n(entry + sizeof(none), half, static_cast<std::byte>(kMeanZero | kMeanZero << 4));
    return;
  }
  std::array<float, kMaxHeadDim> mean;  // [head_dim] f32
  std::fill_n(mean.begin(), shape_.head_dim, 0.0f);
  float largest = 0.0f;
  for (int32_t token = 0; token < num_tokens; ++token) {
    for (int32_t dim = 0; dim < shape_.head_dim; ++dim) mean[dim] += rotated[int64_t{token} * shape_.head_dim + dim];
  }
  for (int32_t dim = 0; dim < shape_.head_dim; ++dim) {
    mean[dim] /= static_cast<float>(num_tokens);
    largest = std::max(largest, std::abs(mean[dim]));
  }
  const float step = largest / kMeanSteps;
  const float inverse = step > 0.0f && std::isfinite(1.0f / step) ? 1.0f / step : 0.0f;
  std::memcpy(entry, &step, sizeof(step));
  const auto code = [&](int32_t dim) {
    const float value = std::clamp(std::nearbyint(mean[dim] * inverse), -kMeanSteps, kMeanSteps);
    return static_cast<uint8_t>(std::isnan(value) ? kMeanMiddle : kMeanMiddle + value);
  };
  for (int32_t j = 0; j < half; ++j) entry[sizeof(step) + j] = static_cast<std::byte>(code(j) | code(half + j) << 4);
}

void CentredSignSelector::encode(HeadId, const BlockKeys& block, std::byte* entry) const {
  const int32_t head_dim = shape_.head_dim;
  const int32_t mean_tokens = block.num_tokens / kMeanTokens * kMeanTokens;
  // The stored mean is right unless the number of tokens behind it changed; if so, all codes are made again.
  const bool keep_mean = block.first_new > 0 && block.first_new / kMeanTokens * kMeanTokens == mean_tokens;
  const int32_t first = keep_mean ? block.first_new : 0;
  // A token's signs lie in as many lines as there are planes: all of them are on their way while keys are rotated.
  for (int64_t byte = 0; byte < block_bytes(); byte += 64) __builtin_prefetch(entry + byte, 1);
  // [tokens, head_dim] f32
  const auto rotated = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(block.num_tokens - first) * head_dim);
  for (int32_t token = first; token < block.num_tokens; ++token) {
    rotation_.apply(block.keys + int64_t{token} * head_dim, rotated.get() + int64_t{token - first} * head_dim);
  }
  if (!keep_mean) store_mean(rotated.get(), mean_tokens, entry);

  float step = 0.0f;
  std::memcpy(&step, entry, sizeof(step));
  std::array<uint8_t, kMaxHeadDim> mean;  // [head_dim] u8
  unpack_mean(entry + sizeof(step), head_dim, mean.data());
  for (int32_t token = first; token < block.num_tokens; ++token) {
    float* row = rotated.get() + int64_t{token - first} * head_dim;  // [head_dim] f32
    for (int32_t dim = 0; dim < head_dim; ++dim) row[dim] -= step * (static_cast<float>(mean[dim]) - kMeanMiddle);
    store_signs(row, head_dim, token, reinterpret_cast<uint8_t*>(entry + codes_offset()));
  }
  if (bounds_) store_bounds(block, first, rotated.get(), entry);
}

void CentredSignSelector::store_bounds(const BlockKeys& block, int32_t first, const float* centred,
                                       std::byte* entry) const {
  const int32_t head_dim = shape_.head_dim;
  std::byte* stored = entry + residuals_offset();                                // [65] bf16
  const auto* codes = reinterpret_cast<const uint8_t*>(entry + codes_offset());  // [plane_block_bytes] u8
  for (int32_t token = first; token < block.num_tokens; ++token) {
    const double scale = double{cpu::e4m4_to_float(codes[cpu::plane_scale_offset(num_planes_, token)])};
    const float* row = centred + int64_t{token - first} * head_dim;  // [head_dim] f32
    const float* key = block.keys + int64_t{token} * head_dim;       // [head_dim] f32
    double square = 0.0, key_square = 0.0, mean_magnitude = 0.0;
    for (int32_t dim = 0; dim < head_dim; ++dim) {
      const double difference = double{row[dim]} - (row[dim] >= 0.0f ? scale : -scale);
      square += difference * difference;
      key_square += double{key[dim]} * double{key[dim]};
      mean_magnitude += std::abs(double{row[dim]});
    }
    // Taking off the mean is one more rounding of each component: at most that of its result and of the mean.
    const double error = rotation_rounding(head_dim) * std::sqrt(key_square) +
                         2.0 * kUnitRoundoff * (mean_magnitude + std::sqrt(key_square));
    const uint16_t residual = bf16_outward(float_above(std::sqrt(square) + error), true);
    std::memcpy(stored + 2 * token, &residual, sizeof(residual));
  }
  const uint16_t norm = largest_norm_bf16(block.values + int64_t{first} * head_dim, block.num_tokens - first, head_dim);
  if (first > 0 && load_bf16(stored + 2 * kBlockTokens) > bf16_to_float(norm)) return;
  std::memcpy(stored + 2 * kBlockTokens, &norm, sizeof(norm));
}

size_t CentredSignSelector::query_state_bytes() const {
  return sizeof(StateHead) +
         static_cast<size_t>(rounded_bytes(shape_) + shape_.group * cpu::plane_table_bytes(num_planes_));
}

void CentredSignSelector::prepare(HeadId, const float* q, std::byte* state) const {
  auto& head = *reinterpret_cast<StateHead*>(state);
  auto* rounded = reinterpret_cast<int16_t*>(state + sizeof(StateHead));  // [group, head_dim] i16
  auto* tables =
      reinterpret_cast<int8_t*>(state + sizeof(StateHead) + rounded_bytes(shape_));  // [group, plane_table_bytes] i8
  std::array<float, kMaxHeadDim> rotated;                                            // [head_dim] f32
  for (int32_t query = 0; query < shape_.group; ++query) {
    rotation_.apply(q + int64_t{query} * shape_.head_dim, rotated.data());
    int16_t* row = rounded + int64_t{query} * shape_.head_dim;  // [head_dim] i16
    head.mean_steps[query] = cpu::round_to_i16(rotated.data(), shape_.head_dim, row);
    head.q_sums[query] = static_cast<float>(std::accumulate(row, row + shape_.head_dim, int32_t{0}));
    head.steps[query] =
        cpu::make_plane_table(rotated.data(), shape_.head_dim, tables + query * cpu::plane_table_bytes(num_planes_));
    if (!bounds_) continue;
    double square = 0.0, sum = 0.0;
    for (int32_t dim = 0; dim < shape_.head_dim; ++dim) {
      square += double{rotated[dim]} * double{rotated[dim]};
      sum += std::abs(double{rotated[dim]});
    }
    head.norms[query] = float_above(std::sqrt(square) * (1.0 + 32.0 * kUnitRoundoff));
    head.abs_sums[query] = float_above(sum);
  }
}

template <typename Write>
void CentredSignSelector::for_runs(const std::byte* state, const ScoreBlocks& blocks, const float* log_sums,
                                   const Write& write) const {
  const auto& head = *reinterpret_cast<const StateHead*>(state);
  const auto* rounded = reinterpret_cast<const int16_t*>(state + sizeof(StateHead));  // [group, head_dim] i16
  cpu::PlaneQueries queries;
  queries.num_queries = shape_.group;
  queries.num_planes = num_planes_;
  queries.tables = reinterpret_cast<const int8_t*>(state + sizeof(StateHead) + rounded_bytes(shape_));
  queries.steps = head.steps;

  std::array<const std::byte*, kScoreBlocks> codes;      // [count] pointers to [plane_block_bytes] bytes
  std::array<const void*, kScoreBlocks> means;           // [count] pointers to [head_dim / 2] bytes
  std::array<int32_t, kMaxGroup * kScoreBlocks> dots{};  // [group, kScoreBlocks] i32; q . code of the mean
  std::array<float, kMaxGroup * kScoreBlocks> offsets;   // [group, kScoreBlocks] f32; q . mean
  const int32_t num_known = blocks.num_blocks + blocks.num_ahead;
  for (int32_t first = 0; first < blocks.num_blocks; first += kScoreBlocks) {
    const int32_t count = std::min(kScoreBlocks, blocks.num_blocks - first);
    for (int32_t i = 0; i < count; ++i) {
      codes[i] = blocks.entries[first + i] + codes_offset();
      means[i] = blocks.entries[first + i] + sizeof(float);
    }
    cpu::dot_nibble_rows(rounded, shape_.group, shape_.head_dim, means.data(), count, dots.data(), kScoreBlocks);
    std::array<float, kScoreBlocks> steps{};  // [count] f32
    for (int32_t i = 0; i < count; ++i) std::memcpy(&steps[i], blocks.entries[first + i], sizeof(float));
    // Past `count` there is room, and loops of constant length become a few vectors.
    for (int32_t query = 0; query < shape_.group; ++query) {
      const float middle = kMeanMiddle * head.q_sums[query], log_sum = log_sums == nullptr ? 0.0f : log_sums[query];
      for (int32_t i = 0; i < kScoreBlocks; ++i) {
        const float dot = static_cast<float>(dots[query * kScoreBlocks + i]) - middle;
        offsets[query * kScoreBlocks + i] = steps[i] * head.mean_steps[query] * dot - log_sum;
      }
    }
    // What is scored next is fetched meanwhile.
    const std::byte* const* ahead = blocks.entries + first + kScoreBlocks;
    const int32_t num_ahead = std::clamp(num_known - first - kScoreBlocks, 0, count);
    write(queries, cpu::PlaneBlocks{codes.data(), count, offsets.data(), kScoreBlocks, ahead, num_ahead, block_bytes()},
          first);
  }
}

void CentredSignSelector::score(const std::byte* state, const ScoreBlocks& blocks, float* scores,
                                int64_t score_stride) const {
  for_runs(state, blocks, nullptr, [&](const cpu::PlaneQueries& queries, const cpu::PlaneBlocks& run, int32_t first) {
    cpu::plane_scores(queries, run, scores + int64_t{first} * kBlockTokens, score_stride);
  });
}

bool CentredSignSelector::score_groups(const std::byte* state, const ScoreBlocks& blocks, const float* log_sums,
                                       float* group_scores) const {
  for_runs(state, blocks, log_sums, [&](const cpu::PlaneQueries& queries, const cpu::PlaneBlocks& run, int32_t first) {
    cpu::largest_plane_scores(queries, run, group_scores + int64_t{first} * kBlockTokens);
  });
  return true;
}

void CentredSignSelector::bound(const std::byte* state, const ScoreBlocks& blocks, float* bounds,
                                int64_t bound_stride) const {
  const auto& head = *reinterpret_cast<const StateHead*>(state);
  const auto head_dim = static_cast<float>(shape_.head_dim);
  score(state, blocks, bounds, bound_stride);
  for (int32_t block = 0; block < blocks.num_blocks; ++block) {
    const std::byte* entry = blocks.entries[block];                                // [block_bytes] bytes
    const auto* codes = reinterpret_cast<const uint8_t*>(entry + codes_offset());  // [plane_block_bytes] u8
    float step = 0.0f;
    std::memcpy(&step, entry, sizeof(step));
    for (int32_t query = 0; query < shape_.group; ++query) {
      const float rounding = 2.0f * (head_dim + 8.0f) * kUnitRoundoff * head.abs_sums[query];
      // Half a step of the rounded query times the largest mean, and f32 sums over 0 .. 14 less 7.
      const float of_mean = step * (0.5001f * kMeanSteps * head.mean_steps[query] * head_dim + 22.0f * rounding);
      const float of_signs = 1.5001f * static_cast<float>(num_planes_) * head.steps[query] + rounding;  // times the scale
      for (int32_t token = 0; token < kBlockTokens; ++token) {
        float& value = bounds[query * bound_stride + int64_t{block} * kBlockTokens + token];
        const float scale = cpu::e4m4_to_float(codes[cpu::plane_scale_offset(num_planes_, token)]);
        const float residual = load_bf16(entry + residuals_offset() + 2 * token);
        const float slack = head.norms[query] * residual + scale * of_signs + of_mean;
        value += slack + 16.0f * kUnitRoundoff * (std::abs(value) + slack);
      }
    }
  }
}

void CentredSignSelector::value_bounds(const ScoreBlocks& blocks, float* norms) const {
  for (int32_t i = 0; i < blocks.num_blocks; ++i) norms[i] = load_bf16(blocks.entries[i] + block_bytes() - 2);
}

Expected<std::shared_ptr<const Selector>> make_centred_sign_selector(const SelectorShape& shape, std::string_view options) {
  if (!options.empty() && options != "bound") {
    return Status::invalid_argument("selector: sign64 takes the option bound or none, got '" + std::string(options) + "'");
  }
  if (shape.head_dim % 4 != 0 || shape.head_dim > kMaxHeadDim) {
    return Status::unsupported("selector: sign64 needs a head_dim that is a multiple of 4 and at most 1024, got " +
                               std::to_string(shape.head_dim));
  }
  return std::make_shared<const CentredSignSelector>(shape, !options.empty());
}

}  // namespace rarefy
