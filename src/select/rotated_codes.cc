#include "select/rotated_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "select/builtin_selectors.h"
#include "select/outward.h"

namespace rarefy {
namespace {

constexpr int32_t kMaxHeadDim = 1024;
constexpr float kLargestHalf = 65504.0f;

// A query state: this, then the tables.
struct StateHead {
  float steps[kMaxGroup];         // [group] f32; of the tables
  float norms[kMaxGroup];         // [group] f32; |q|, rounded up
  float table_errors[kMaxGroup];  // [group] f32; how far a score can be from scale * levels . R q, in units of the scale
};
static_assert(sizeof(StateHead) % 64 == 0);

}  // namespace

int32_t num_code_lanes(const CodeFormat& format, int32_t head_dim) {
  const int32_t dims_per_lane = 2 * format.dims_per_group();
  const int32_t lanes = (head_dim + dims_per_lane - 1) / dims_per_lane;
  return (lanes + cpu::kNibbleLaneMultiple - 1) / cpu::kNibbleLaneMultiple * cpu::kNibbleLaneMultiple;
}

std::array<float, 4 * cpu::kNibblePatterns> code_coefficients(const CodeFormat& format) {
  std::array<float, 4 * cpu::kNibblePatterns> coefficients{};  // [dims_per_group, 16] f32
  const uint32_t code_mask = (1u << format.bits) - 1u;
  for (int32_t j = 0; j < format.dims_per_group(); ++j) {
    for (uint32_t pattern = 0; pattern < cpu::kNibblePatterns; ++pattern) {
      coefficients[j * cpu::kNibblePatterns + pattern] = format.levels[(pattern >> (j * format.bits)) & code_mask];
    }
  }
  return coefficients;
}

float encode_codes(const CodeFormat& format, const float* rotated, int32_t head_dim, int32_t num_lanes, int32_t token,
                   std::byte* entry) {
  float square_sum = 0.0f;
  for (int32_t dim = 0; dim < head_dim; ++dim) square_sum += rotated[dim] * rotated[dim];
  const float cut = format.cut * std::sqrt(square_sum / static_cast<float>(head_dim));

  const int32_t dims_per_lane = 2 * format.dims_per_group();
  float product = 0.0f, level_square_sum = 0.0f;
  for (int32_t lane = 0; lane < num_lanes; ++lane) {
    uint32_t byte = 0;
    for (int32_t j = 0; j < dims_per_lane; ++j) {
      const int32_t dim = lane * dims_per_lane + j;
      if (dim >= head_dim) break;
      const float value = rotated[dim];
      uint32_t code = value >= 0.0f ? 1u : 0u;
      if (format.bits == 2) code = std::abs(value) > cut ? 3u * code : 1u + code;
      const float level = format.levels[code];
      product += value * level;
      level_square_sum += level * level;
      byte |= code << (j * format.bits);
    }
    entry[cpu::nibble_code_offset(lane, token)] = static_cast<std::byte>(byte);
  }
  return product / level_square_sum;
}

RotatedCodeSelector::RotatedCodeSelector(const CodeFormat& format, const SelectorShape& shape, bool bounds)
    : format_(format),
      shape_(shape),
      rotation_(shape.head_dim),
      num_lanes_(num_code_lanes(format, shape.head_dim)),
      bounds_(bounds),
      coefficients_(code_coefficients(format)) {}

void RotatedCodeSelector::encode(HeadId, const BlockKeys& block, std::byte* entry) const {
  std::array<float, kMaxHeadDim> rotated;  // [head_dim] f32
  for (int32_t token = block.first_new; token < block.num_tokens; ++token) {
    rotation_.apply(block.keys + int64_t{token} * shape_.head_dim, rotated.data());
    const float scale = encode_codes(format_, rotated.data(), shape_.head_dim, num_lanes_, token, entry);
    const Float16 stored = to_float16(std::min(scale, kLargestHalf));
    std::memcpy(entry + num_lanes_ * cpu::kNibbleLaneBytes + 2 * token, &stored.bits, sizeof(stored.bits));
    if (!bounds_) continue;
    const uint16_t residual =
        residual_norm_bf16(block.keys + int64_t{token} * shape_.head_dim, rotated.data(), token, to_float(stored), entry);
    std::memcpy(entry + cpu::nibble_block_bytes(num_lanes_) + 2 * token, &residual, sizeof(residual));
  }
  if (!bounds_) return;
  std::byte* stored = entry + block_bytes() - 2;  // [2] bytes
  uint16_t norm = largest_norm_bf16(block.values + int64_t{block.first_new} * shape_.head_dim,
                                    block.num_tokens - block.first_new, shape_.head_dim);
  if (block.first_new > 0 && load_bf16(stored) > bf16_to_float(norm)) return;
  std::memcpy(stored, &norm, sizeof(norm));
}

uint16_t RotatedCodeSelector::residual_norm_bf16(const float* key, const float* rotated, int32_t token, float scale,
                                                 const std::byte* entry) const {
  const int32_t dims_per_lane = 2 * format_.dims_per_group();
  double square = 0.0, key_square = 0.0;
  for (int32_t dim = 0; dim < shape_.head_dim; ++dim) {
    const auto byte = static_cast<uint32_t>(entry[cpu::nibble_code_offset(dim / dims_per_lane, token)]);
    const uint32_t code = (byte >> (dim % dims_per_lane * format_.bits)) & ((1u << format_.bits) - 1u);
    const double difference = double{rotated[dim]} - double{scale} * double{format_.levels[code]};
    square += difference * difference;
    key_square += double{key[dim]} * double{key[dim]};
  }
  const double rotation_error = rotation_rounding(shape_.head_dim) * std::sqrt(key_square);
  return bf16_outward(float_above(std::sqrt(square) + rotation_error), true);
}

size_t RotatedCodeSelector::query_state_bytes() const {
  return static_cast<size_t>(sizeof(StateHead) + shape_.group * cpu::nibble_table_bytes(num_lanes_));
}

cpu::NibbleTables RotatedCodeSelector::tables(const std::byte* state) const {
  cpu::NibbleTables result;
  result.num_queries = shape_.group;
  result.num_lanes = num_lanes_;
  result.steps = reinterpret_cast<const StateHead*>(state)->steps;
  result.tables = reinterpret_cast<const uint8_t*>(state + sizeof(StateHead));
  return result;
}

void RotatedCodeSelector::prepare(HeadId, const float* q, std::byte* state) const {
  auto& head = *reinterpret_cast<StateHead*>(state);
  auto* tables = reinterpret_cast<uint8_t*>(state + sizeof(StateHead));  // [group, 2, num_lanes, 16] u8
  std::array<float, kMaxHeadDim> rotated;                                // [head_dim] f32
  for (int32_t query = 0; query < shape_.group; ++query) {
    rotation_.apply(q + int64_t{query} * shape_.head_dim, rotated.data());
    head.steps[query] =
        cpu::make_nibble_table(rotated.data(), shape_.head_dim, format_.dims_per_group(), coefficients_.data(), num_lanes_,
                               tables + query * cpu::nibble_table_bytes(num_lanes_));
    if (!bounds_) continue;
    double square = 0.0, sum = 0.0;
    for (int32_t dim = 0; dim < shape_.head_dim; ++dim) {
      square += double{rotated[dim]} * double{rotated[dim]};
      sum += std::abs(double{rotated[dim]});
    }
    head.norms[query] = float_above(std::sqrt(square) * (1.0 + 32.0 * kUnitRoundoff));
    // Half a step for each group of dimensions; table entries are sums of a few products in f32 (levels are at most 1.6).
    const double num_groups = (shape_.head_dim + format_.dims_per_group() - 1) / format_.dims_per_group();
    head.table_errors[query] =
        float_above(0.5 * head.steps[query] * num_groups * (1.0 + 1e-4) + 1.6 * 32.0 * kUnitRoundoff * sum);
  }
}

void RotatedCodeSelector::score(const std::byte* state, const ScoreBlocks& blocks, float* scores,
                                int64_t score_stride) const {
  cpu::nibble_scores(tables(state), {blocks.entries, blocks.num_blocks, blocks.num_ahead}, scores, score_stride);
}

void RotatedCodeSelector::bound(const std::byte* state, const ScoreBlocks& blocks, float* bounds,
                                int64_t bound_stride) const {
  constexpr int32_t kTokens = cpu::kNibbleBlockTokens;
  const auto& head = *reinterpret_cast<const StateHead*>(state);
  score(state, blocks, bounds, bound_stride);
  for (int32_t block = 0; block < blocks.num_blocks; ++block) {
    const std::byte* scales = blocks.entries[block] + num_lanes_ * cpu::kNibbleLaneBytes;      // [16] f16
    const std::byte* residuals = blocks.entries[block] + cpu::nibble_block_bytes(num_lanes_);  // [16] bf16
    for (int32_t token = 0; token < kTokens; ++token) {
      Float16 scale;
      std::memcpy(&scale.bits, scales + 2 * token, sizeof(scale.bits));
      const float residual = load_bf16(residuals + 2 * token);
      for (int32_t query = 0; query < shape_.group; ++query) {
        float& value = bounds[query * bound_stride + int64_t{block} * kTokens + token];
        const float slack = head.norms[query] * residual + std::abs(to_float(scale)) * head.table_errors[query];
        value += slack + 16.0f * kUnitRoundoff * (std::abs(value) + slack);
      }
    }
  }
}

void RotatedCodeSelector::value_bounds(const ScoreBlocks& blocks, float* norms) const {
  for (int32_t i = 0; i < blocks.num_blocks; ++i) norms[i] = load_bf16(blocks.entries[i] + block_bytes() - 2);
}

namespace {

Expected<std::shared_ptr<const Selector>> make_codes(const CodeFormat& format, const SelectorShape& shape,
                                                     std::string_view options) {
  if (!options.empty() && options != "bound") {
    return Status::invalid_argument("selector: " + std::string(format.name) + " takes the option bound or none, got '" +
                                    std::string(options) + "'");
  }
  if (shape.head_dim % format.dims_per_group() != 0 || shape.head_dim > kMaxHeadDim) {
    return Status::unsupported("selector: " + std::string(format.name) + " needs a head_dim that is a multiple of " +
                               std::to_string(format.dims_per_group()) + " and at most " + std::to_string(kMaxHeadDim) +
                               ", got " + std::to_string(shape.head_dim));
  }
  return std::make_shared<const RotatedCodeSelector>(format, shape, !options.empty());
}

}  // namespace

Expected<std::shared_ptr<const Selector>> make_sign_selector(const SelectorShape& shape, std::string_view options) {
  return make_codes(kSignCodes, shape, options);
}

Expected<std::shared_ptr<const Selector>> make_q2_selector(const SelectorShape& shape, std::string_view options) {
  return make_codes(kTwoBitCodes, shape, options);
}

}  // namespace rarefy
