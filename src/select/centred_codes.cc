#include "select/centred_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/select/key_rows.h"
#include "select/builtin_selectors.h"

namespace rarefy {
namespace {

constexpr int32_t kMaxHeadDim = 1024;
constexpr float kMeanSteps = 7.0f;   // 4 bits: -7 .. 7
constexpr float kMeanMiddle = 7.0f;  // stored as 0 .. 14
constexpr int32_t kScoreBlocks = 16;  // blocks per call of nibble_scores
constexpr int kIntoL2 = 2;            // locality of prefetches

// The mean in units of its step: byte j holds dimension j in its low half and dimension j + head_dim / 2 in its high half.
void unpack_mean(const std::byte* packed, int32_t head_dim, uint8_t* mean) {  // packed: [head_dim / 2] bytes; mean: [head_dim] u8
  const int32_t half = head_dim / 2;
  for (int32_t j = 0; j < half; ++j) mean[j] = static_cast<uint8_t>(packed[j] & std::byte{15});
  for (int32_t j = 0; j < half; ++j) mean[half + j] = static_cast<uint8_t>(packed[j] >> 4);
}

// A query state: what the mean needs, then the tables.
struct StateHead {
  float steps[kMaxGroup];      // [group] f32; of the tables
  float q_sums[kMaxGroup];     // [group] f32; sum of the rotated query
};
static_assert(sizeof(StateHead) % 64 == 0);

int64_t rotated_bytes(const SelectorShape& shape) {
  return (int64_t{shape.group} * shape.head_dim * static_cast<int64_t>(sizeof(float)) + 63) / 64 * 64;
}

}  // namespace

CentredSignSelector::CentredSignSelector(const SelectorShape& shape)
    : shape_(shape), rotation_(shape.head_dim), num_lanes_(num_code_lanes(kSignCodes, shape.head_dim)),
      coefficients_(code_coefficients(kSignCodes)) {}

void CentredSignSelector::store_mean(const float* rotated, int32_t num_tokens, std::byte* entry) const {
  std::array<float, kMaxHeadDim> mean{};  // [head_dim] f32
  float largest = 0.0f;
  for (int32_t token = 0; token < num_tokens; ++token) {
    for (int32_t dim = 0; dim < shape_.head_dim; ++dim) mean[dim] += rotated[int64_t{token} * shape_.head_dim + dim];
  }
  for (int32_t dim = 0; dim < shape_.head_dim; ++dim) {
    if (num_tokens > 0) mean[dim] /= static_cast<float>(num_tokens);
    largest = std::max(largest, std::abs(mean[dim]));
  }
  const float step = largest / kMeanSteps;
  const float inverse = step > 0.0f && std::isfinite(1.0f / step) ? 1.0f / step : 0.0f;
  std::memcpy(entry, &step, sizeof(step));
  const auto code = [&](int32_t dim) {
    const float value = std::clamp(std::nearbyint(mean[dim] * inverse), -kMeanSteps, kMeanSteps);
    return static_cast<uint8_t>(std::isnan(value) ? kMeanMiddle : kMeanMiddle + value);
  };
  const int32_t half = shape_.head_dim / 2;
  for (int32_t j = 0; j < half; ++j) entry[sizeof(step) + j] = static_cast<std::byte>(code(j) | code(half + j) << 4);
}

void CentredSignSelector::encode(HeadId, const BlockKeys& block, std::byte* entry) const {
  const int32_t head_dim = shape_.head_dim;
  const int32_t mean_tokens = block.num_tokens / kMeanTokens * kMeanTokens;
  // The stored mean is right unless the number of tokens behind it changed; if so, all codes are made again.
  const bool keep_mean = block.first_new > 0 && block.first_new / kMeanTokens * kMeanTokens == mean_tokens;
  const int32_t first = keep_mean ? block.first_new : 0;
  std::vector<float> rotated(static_cast<size_t>(block.num_tokens - first) * head_dim);  // [tokens, head_dim] f32
  for (int32_t token = first; token < block.num_tokens; ++token) {
    rotation_.apply(block.keys + int64_t{token} * head_dim, rotated.data() + int64_t{token - first} * head_dim);
  }
  if (!keep_mean) store_mean(rotated.data(), mean_tokens, entry);

  float step = 0.0f;
  std::memcpy(&step, entry, sizeof(step));
  std::array<uint8_t, kMaxHeadDim> mean;  // [head_dim] u8
  unpack_mean(entry + sizeof(step), head_dim, mean.data());
  for (int32_t token = first; token < block.num_tokens; ++token) {
    float* row = rotated.data() + int64_t{token - first} * head_dim;  // [head_dim] f32
    for (int32_t dim = 0; dim < head_dim; ++dim) row[dim] -= step * (static_cast<float>(mean[dim]) - kMeanMiddle);
    std::byte* codes = entry + codes_offset() + token / cpu::kNibbleBlockTokens * codes_bytes();  // [codes_bytes] bytes
    const int32_t place = token % cpu::kNibbleBlockTokens;
    const float scale = encode_codes(kSignCodes, row, head_dim, num_lanes_, place, codes);
    codes[int64_t{num_lanes_} * cpu::kNibbleLaneBytes + place] = static_cast<std::byte>(cpu::float_to_e4m4(scale));
  }
}

size_t CentredSignSelector::query_state_bytes() const {
  return sizeof(StateHead) + static_cast<size_t>(rotated_bytes(shape_) + shape_.group * cpu::nibble_table_bytes(num_lanes_));
}

void CentredSignSelector::prepare(HeadId, const float* q, std::byte* state) const {
  auto& head = *reinterpret_cast<StateHead*>(state);
  auto* rotated = reinterpret_cast<float*>(state + sizeof(StateHead));                           // [group, head_dim] f32
  auto* tables = reinterpret_cast<uint8_t*>(state + sizeof(StateHead) + rotated_bytes(shape_));  // [group, 2, num_lanes, 16] u8
  for (int32_t query = 0; query < shape_.group; ++query) {
    float* row = rotated + int64_t{query} * shape_.head_dim;  // [head_dim] f32
    rotation_.apply(q + int64_t{query} * shape_.head_dim, row);
    head.q_sums[query] = 0.0f;
    for (int32_t dim = 0; dim < shape_.head_dim; ++dim) head.q_sums[query] += row[dim];
    head.steps[query] = cpu::make_nibble_table(row, shape_.head_dim, kSignCodes.dims_per_group(), coefficients_.data(), num_lanes_,
                                               tables + query * cpu::nibble_table_bytes(num_lanes_));
  }
}

void CentredSignSelector::score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const {
  const auto& head = *reinterpret_cast<const StateHead*>(state);
  const auto* rotated = reinterpret_cast<const float*>(state + sizeof(StateHead));  // [group, head_dim] f32
  cpu::NibbleTables tables;
  tables.scale_format = cpu::NibbleScale::e4m4;
  tables.num_queries = shape_.group;
  tables.num_lanes = num_lanes_;
  tables.tables = reinterpret_cast<const uint8_t*>(state + sizeof(StateHead) + rotated_bytes(shape_));
  tables.steps = head.steps;

  std::array<const std::byte*, 2 * kScoreBlocks * kCodeBlocks> codes;  // [blocks, kCodeBlocks] pointers to [codes_bytes] bytes
  std::array<const void*, kScoreBlocks> means;                         // [count] pointers to [head_dim / 2] bytes
  std::array<float, kMaxGroup * kScoreBlocks> dots;                    // [group, kScoreBlocks] f32; q . code of the mean
  std::array<float, kMaxGroup * kScoreBlocks * kCodeBlocks> offsets;   // [group, count, kCodeBlocks] f32; q . mean
  const int32_t num_known = blocks.num_blocks + blocks.num_ahead;
  for (int32_t first = 0; first < blocks.num_blocks; first += kScoreBlocks) {
    const int32_t count = std::min(kScoreBlocks, blocks.num_blocks - first);
    const int32_t ahead = std::min(kScoreBlocks, num_known - first - count);
    for (int32_t i = 0; i < count + ahead; ++i) {
      const std::byte* entry = blocks.entries[first + i];  // [block_bytes] bytes
      for (int32_t part = 0; part < kCodeBlocks; ++part) codes[i * kCodeBlocks + part] = entry + codes_offset() + part * codes_bytes();
      if (i < count) {
        means[i] = entry + sizeof(float);
      } else {
        for (int64_t line = 0; line < codes_offset(); line += 64) __builtin_prefetch(entry + line, 0, kIntoL2);
      }
    }
    cpu::dot_nibble_rows(rotated, shape_.group, shape_.head_dim, means.data(), count, dots.data(), kScoreBlocks);
    for (int32_t i = 0; i < count; ++i) {
      float step = 0.0f;
      std::memcpy(&step, blocks.entries[first + i], sizeof(step));
      for (int32_t query = 0; query < shape_.group; ++query) {
        const float offset = step * (dots[query * kScoreBlocks + i] - kMeanMiddle * head.q_sums[query]);
        std::fill_n(offsets.begin() + (query * count + i) * kCodeBlocks, kCodeBlocks, offset);
      }
    }
    cpu::nibble_scores(tables, {codes.data(), count * kCodeBlocks, ahead * kCodeBlocks, offsets.data()},
                       scores + int64_t{first} * kBlockTokens, score_stride);
  }
}

Expected<std::shared_ptr<const Selector>> make_centred_sign_selector(const SelectorShape& shape, std::string_view options) {
  if (!options.empty()) {
    return Status::invalid_argument("selector: sign64 takes no options, got '" + std::string(options) + "'");
  }
  if (shape.head_dim % kSignCodes.dims_per_group() != 0 || shape.head_dim > kMaxHeadDim) {
    return Status::unsupported("selector: sign64 needs a head_dim that is a multiple of 4 and at most 1024, got " +
                               std::to_string(shape.head_dim));
  }
  return std::make_shared<const CentredSignSelector>(shape);
}

}  // namespace rarefy
