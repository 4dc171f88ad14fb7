#include "select/socket.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "select/builtin_selectors.h"
#include "select/outward.h"

namespace rarefy {
namespace {

constexpr uint32_t kPlaneSeed = 2;
constexpr int32_t kMaxSigns = 16, kMaxTables = 512;

}  // namespace

SocketSelector::SocketSelector(const SelectorShape& shape, int32_t num_signs, int32_t num_tables)
    : shape_(shape),
      num_signs_(num_signs),
      num_tables_(num_tables),
      planes_(num_signs * num_tables, shape.head_dim, kPlaneSeed) {}

std::string SocketSelector::name() const {
  if (num_signs_ == kDefaultSigns && num_tables_ == kDefaultTables) return "socket";
  return "socket:" + std::to_string(num_signs_) + "x" + std::to_string(num_tables_);
}

void SocketSelector::encode(HeadId, const BlockKeys& block, std::byte* entry) const {
  const int32_t head_dim = shape_.head_dim, count = block.num_tokens - block.first_new;
  std::vector<float> projections(static_cast<size_t>(count) * planes_.num_planes());  // [count, num_planes] f32
  planes_.project(block.keys + int64_t{block.first_new} * head_dim, count, projections.data());
  for (int32_t i = 0; i < count; ++i) {
    const float* row = &projections[static_cast<size_t>(i) * planes_.num_planes()];  // [num_planes] f32
    std::byte* to = entry + (block.first_new + i) * token_bytes();                   // [token_bytes] bytes
    for (int32_t table = 0; table < num_tables_; ++table) {
      uint16_t id = 0;
      for (int32_t j = 0; j < num_signs_; ++j) {
        id = static_cast<uint16_t>(id | (row[table * num_signs_ + j] >= 0.0f ? 1u : 0u) << j);
      }
      std::memcpy(to + 2 * table, &id, sizeof(id));
    }
    const float* value = block.values + int64_t{block.first_new + i} * head_dim;  // [head_dim] f32
    float square = 0.0f;
    for (int32_t d = 0; d < head_dim; ++d) square += value[d] * value[d];
    const uint16_t norm = to_bfloat16(std::sqrt(square)).bits;
    std::memcpy(to + 2 * num_tables_, &norm, sizeof(norm));
  }
}

int32_t SocketSelector::token_id(const std::byte* entry, int32_t token, int32_t table) const {
  uint16_t id = 0;
  std::memcpy(&id, entry + token * token_bytes() + 2 * table, sizeof(id));
  return id;
}

float SocketSelector::value_norm(const std::byte* entry, int32_t token) const {
  return load_bf16(entry + token * token_bytes() + 2 * num_tables_);
}

// State: [num_tables, table_rows, padded_group] f32: products over the first signs, then over the others.
size_t SocketSelector::query_state_bytes() const {
  return sizeof(float) * static_cast<size_t>(num_tables_ * table_rows() * padded_group());
}

void SocketSelector::prepare(HeadId, const float* q, std::byte* state) const {
  const double root = std::sqrt(static_cast<double>(shape_.head_dim));
  std::memset(state, 0, query_state_bytes());
  auto* tables = reinterpret_cast<float*>(state);  // [num_tables, table_rows, padded_group] f32
  std::vector<float> projections(static_cast<size_t>(shape_.group) * planes_.num_planes());  // [group, num_planes] f32
  planes_.project(q, shape_.group, projections.data());
  std::array<double, 2 * kMaxSigns> probabilities;  // [num_signs, 2] f64; of sign - and +
  for (int32_t query = 0; query < shape_.group; ++query) {
    for (int32_t table = 0; table < num_tables_; ++table) {
      for (int32_t j = 0; j < num_signs_; ++j) {
        const double projection =
            double{projections[static_cast<size_t>(query) * planes_.num_planes() + table * num_signs_ + j]};
        const double h = std::tanh(projection * root) / root / kTemperature;
        probabilities[2 * j] = 1.0 / (1.0 + std::exp(2.0 * h));
        probabilities[2 * j + 1] = 1.0 / (1.0 + std::exp(-2.0 * h));
      }
      float* row = tables + table * table_rows() * padded_group() + query;
      for (const auto& [first, count] : {std::pair{0, low_signs()}, std::pair{low_signs(), num_signs_ - low_signs()}}) {
        for (int32_t pattern = 0; pattern < 1 << count; ++pattern, row += padded_group()) {
          double product = 1.0;
          for (int32_t j = 0; j < count; ++j) product *= probabilities[2 * (first + j) + (pattern >> j & 1)];
          *row = static_cast<float>(product);
        }
      }
    }
  }
}

template <int32_t kWidth>
void SocketSelector::score_tables(const std::byte* state, const ScoreBlocks& blocks, float* scores,
                                  int64_t score_stride) const {
  const auto* tables = reinterpret_cast<const float*>(state);  // [num_tables, table_rows, kWidth] f32
  const int32_t low_mask = (1 << low_signs()) - 1;
  for (int32_t block = 0; block < blocks.num_blocks; ++block) {
    for (int32_t token = 0; token < kBlockTokens; ++token) {
      std::array<float, kWidth> sums{};  // [kWidth] f32
      const float* table = tables;       // [table_rows, kWidth] f32
      for (int32_t i = 0; i < num_tables_; ++i, table += table_rows() * kWidth) {
        const int32_t id = token_id(blocks.entries[block], token, i) & ((1 << num_signs_) - 1);
        const float* low = table + int64_t{id & low_mask} * kWidth;                          // [kWidth] f32
        const float* high = table + (int64_t{low_mask} + 1 + (id >> low_signs())) * kWidth;  // [kWidth] f32
        for (int32_t j = 0; j < kWidth; ++j) sums[j] += low[j] * high[j];
      }
      // A value of zeros gets a score below all others, but a finite one.
      const float norm = std::log(std::max(value_norm(blocks.entries[block], token), std::numeric_limits<float>::min()));
      for (int32_t query = 0; query < shape_.group; ++query) {
        scores[query * score_stride + int64_t{block} * kBlockTokens + token] = std::log(sums[query]) + norm;
      }
    }
  }
}

void SocketSelector::score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const {
  switch (padded_group() / 4) {
    case 1: return score_tables<4>(state, blocks, scores, score_stride);
    case 2: return score_tables<8>(state, blocks, scores, score_stride);
    case 3: return score_tables<12>(state, blocks, scores, score_stride);
    default: return score_tables<16>(state, blocks, scores, score_stride);
  }
}

Expected<std::shared_ptr<const Selector>> make_socket_selector(const SelectorShape& shape, std::string_view options) {
  int32_t num_signs = SocketSelector::kDefaultSigns, num_tables = SocketSelector::kDefaultTables;
  const bool parsed = options.empty() || parse_signs_and_tables(options, num_signs, num_tables);
  if (!parsed || num_signs < 1 || num_signs > kMaxSigns || num_tables < 1 || num_tables > kMaxTables) {
    return Status::invalid_argument(
        "selector: socket takes KxL after the colon, K signs from 1 to 16 in each of L tables from 1 to 512, like "
        "socket:11x55; got '" +
        std::string(options) + "'");
  }
  return std::make_shared<const SocketSelector>(shape, num_signs, num_tables);
}

}  // namespace rarefy
