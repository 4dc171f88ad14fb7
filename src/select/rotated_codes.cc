#include "select/rotated_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "select/builtin_selectors.h"

namespace rarefy {
namespace {

constexpr int32_t kMaxHeadDim = 1024;
constexpr float kLargestHalf = 65504.0f;

// Steps come first in a query state, padded so that the tables behind them are aligned.
constexpr int64_t kStepBytes = kMaxGroup * sizeof(float);
static_assert(kStepBytes % 64 == 0);

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

RotatedCodeSelector::RotatedCodeSelector(const CodeFormat& format, const SelectorShape& shape)
    : format_(format), shape_(shape), rotation_(shape.head_dim), num_lanes_(num_code_lanes(format, shape.head_dim)),
      coefficients_(code_coefficients(format)) {}

void RotatedCodeSelector::encode(HeadId, const BlockKeys& block, std::byte* entry) const {
  std::array<float, kMaxHeadDim> rotated;  // [head_dim] f32
  for (int32_t token = block.first_new; token < block.num_tokens; ++token) {
    rotation_.apply(block.keys + int64_t{token} * shape_.head_dim, rotated.data());
    const float scale = encode_codes(format_, rotated.data(), shape_.head_dim, num_lanes_, token, entry);
    const Float16 stored = to_float16(std::min(scale, kLargestHalf));
    std::memcpy(entry + num_lanes_ * cpu::kNibbleLaneBytes + 2 * token, &stored.bits, sizeof(stored.bits));
  }
}

size_t RotatedCodeSelector::query_state_bytes() const {
  return static_cast<size_t>(kStepBytes + shape_.group * cpu::nibble_table_bytes(num_lanes_));
}

cpu::NibbleTables RotatedCodeSelector::tables(const std::byte* state) const {
  cpu::NibbleTables result;
  result.num_queries = shape_.group;
  result.num_lanes = num_lanes_;
  result.steps = reinterpret_cast<const float*>(state);
  result.tables = reinterpret_cast<const uint8_t*>(state + kStepBytes);
  return result;
}

void RotatedCodeSelector::prepare(HeadId, const float* q, std::byte* state) const {
  auto* steps = reinterpret_cast<float*>(state);                      // [group] f32
  auto* tables = reinterpret_cast<uint8_t*>(state + kStepBytes);      // [group, 2, num_lanes, 16] u8
  std::array<float, kMaxHeadDim> rotated;                             // [head_dim] f32
  for (int32_t query = 0; query < shape_.group; ++query) {
    rotation_.apply(q + int64_t{query} * shape_.head_dim, rotated.data());
    steps[query] = cpu::make_nibble_table(rotated.data(), shape_.head_dim, format_.dims_per_group(), coefficients_.data(),
                                          num_lanes_, tables + query * cpu::nibble_table_bytes(num_lanes_));
  }
}

void RotatedCodeSelector::score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const {
  cpu::nibble_scores(tables(state), {blocks.entries, blocks.num_blocks, blocks.num_ahead}, scores, score_stride);
}

namespace {

Expected<std::shared_ptr<const Selector>> make_codes(const CodeFormat& format, const SelectorShape& shape,
                                                     std::string_view options) {
  if (!options.empty()) {
    return Status::invalid_argument("selector: " + std::string(format.name) + " takes no options, got '" + std::string(options) + "'");
  }
  if (shape.head_dim % format.dims_per_group() != 0 || shape.head_dim > kMaxHeadDim) {
    return Status::unsupported("selector: " + std::string(format.name) + " needs a head_dim that is a multiple of " +
                               std::to_string(format.dims_per_group()) + " and at most " + std::to_string(kMaxHeadDim) +
                               ", got " + std::to_string(shape.head_dim));
  }
  return std::make_shared<const RotatedCodeSelector>(format, shape);
}

}  // namespace

Expected<std::shared_ptr<const Selector>> make_sign_selector(const SelectorShape& shape, std::string_view options) {
  return make_codes(kSignCodes, shape, options);
}

Expected<std::shared_ptr<const Selector>> make_q2_selector(const SelectorShape& shape, std::string_view options) {
  return make_codes(kTwoBitCodes, shape, options);
}

}  // namespace rarefy
