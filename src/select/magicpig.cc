#include "select/magicpig.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <numbers>
#include <vector>

#include "select/builtin_selectors.h"
#include "select/k_means.h"

namespace rarefy {
namespace {

constexpr uint32_t kPlaneSeed = 1;
constexpr int32_t kMaxSigns = 16, kMaxTables = 255;  // collisions are counted in bytes

}  // namespace

MagicPigSelector::MagicPigSelector(const SelectorShape& shape, int32_t num_signs, int32_t num_tables)
    : shape_(shape),
      num_signs_(num_signs),
      num_tables_(num_tables),
      planes_(num_signs * num_tables, shape.head_dim + 1, kPlaneSeed) {}

std::string MagicPigSelector::name() const {
  if (num_signs_ == kDefaultSigns && num_tables_ == kDefaultTables) return "magicpig";
  return "magicpig:" + std::to_string(num_signs_) + "x" + std::to_string(num_tables_);
}

// Trained: mean [head_dim] f32, then M.
Status MagicPigSelector::train(HeadId head, const float* keys, int32_t num_tokens, std::byte* trained) const {
  const int32_t head_dim = shape_.head_dim, num_points = num_tokens - kSkippedTokens;
  RAREFY_RETURN_IF_ERROR(check_finite(keys, int64_t{num_tokens} * head_dim, name(), head));
  const float* first = keys + int64_t{kSkippedTokens} * head_dim;  // [num_points, head_dim] f32
  auto* mean = reinterpret_cast<float*>(trained);                  // [head_dim] f32
  for (int32_t dim = 0; dim < head_dim; ++dim) {
    double sum = 0.0;
    for (int32_t i = 0; i < num_points; ++i) sum += double{first[int64_t{i} * head_dim + dim]};
    mean[dim] = static_cast<float>(sum / num_points);
  }
  double largest = 0.0;
  for (int32_t i = 0; i < num_points; ++i) {
    double square = 0.0;
    for (int32_t dim = 0; dim < head_dim; ++dim)
      square += std::pow(double{first[int64_t{i} * head_dim + dim]} - double{mean[dim]}, 2);
    largest = std::max(largest, square);
  }
  mean[head_dim] = static_cast<float>(std::sqrt(largest));
  return {};
}

int32_t MagicPigSelector::id_of(const float* projections, int32_t table) const {
  int32_t id = 0;
  for (int32_t i = 0; i < num_signs_; ++i) id |= (projections[table * num_signs_ + i] >= 0.0f ? 1 : 0) << i;
  return id;
}

void MagicPigSelector::encode(HeadId head, const BlockKeys& block, std::byte* entry) const {
  const int32_t head_dim = shape_.head_dim, dim = planes_.dim(), count = block.num_tokens - block.first_new;
  const auto* mean = reinterpret_cast<const float*>(head.trained);  // [head_dim] f32
  const float longest = mean[head_dim];
  const float inverse = longest > 0.0f ? 1.0f / longest : 0.0f;
  std::vector<float> lifted(static_cast<size_t>(count) * dim);                        // [count, dim] f32
  std::vector<float> projections(static_cast<size_t>(count) * planes_.num_planes());  // [count, num_planes] f32
  for (int32_t i = 0; i < count; ++i) {
    const float* key = block.keys + int64_t{block.first_new + i} * head_dim;  // [head_dim] f32
    float* to = &lifted[static_cast<size_t>(i) * dim];                        // [dim] f32
    float square = 0.0f;
    for (int32_t d = 0; d < head_dim; ++d) {
      to[d] = (key[d] - mean[d]) * inverse;
      square += to[d] * to[d];
    }
    to[head_dim] = std::sqrt(std::max(0.0f, 1.0f - square));
  }
  planes_.project(lifted.data(), count, projections.data());
  for (int32_t i = 0; i < count; ++i) {
    for (int32_t table = 0; table < num_tables_; ++table) {
      const auto id = static_cast<uint16_t>(id_of(&projections[static_cast<size_t>(i) * planes_.num_planes()], table));
      const int64_t at = (int64_t{table} * kBlockTokens + block.first_new + i) * id_bytes();
      std::memcpy(entry + at, &id, static_cast<size_t>(id_bytes()));
    }
  }
}

int32_t MagicPigSelector::token_id(const std::byte* entry, int32_t token, int32_t table) const {
  uint16_t id = 0;
  std::memcpy(&id, entry + (int64_t{table} * kBlockTokens + token) * id_bytes(), static_cast<size_t>(id_bytes()));
  return id;
}

int32_t MagicPigSelector::query_id(const std::byte* state, int32_t query, int32_t table) const {
  uint16_t id = 0;
  std::memcpy(&id, state + ids_offset() + (int64_t{query} * num_tables_ + table) * id_bytes(),
              static_cast<size_t>(id_bytes()));
  return id;
}

// State: the score for every number of collisions, [group, num_tables + 1] f32; then ids [group, num_tables].
int64_t MagicPigSelector::ids_offset() const {
  return static_cast<int64_t>(sizeof(float)) * shape_.group * (num_tables_ + 1);
}

size_t MagicPigSelector::query_state_bytes() const {
  return static_cast<size_t>(ids_offset() + int64_t{shape_.group} * num_tables_ * id_bytes());
}

void MagicPigSelector::prepare(HeadId head, const float* q, std::byte* state) const {
  const int32_t head_dim = shape_.head_dim, dim = planes_.dim();
  const auto* mean = reinterpret_cast<const float*>(head.trained);                           // [head_dim] f32
  auto* table_scores = reinterpret_cast<float*>(state);                                      // [group, num_tables + 1] f32
  std::vector<float> lifted(static_cast<size_t>(shape_.group) * dim, 0.0f);                  // [group, dim] f32
  std::vector<float> projections(static_cast<size_t>(shape_.group) * planes_.num_planes());  // [group, num_planes] f32
  for (int32_t query = 0; query < shape_.group; ++query) {
    const float* row = q + int64_t{query} * head_dim;  // [head_dim] f32
    double square = 0.0, offset = 0.0;
    for (int32_t d = 0; d < head_dim; ++d) {
      lifted[static_cast<size_t>(query) * dim + d] = row[d];  // signs do not depend on the length
      square += double{row[d]} * double{row[d]};
      offset += double{row[d]} * double{mean[d]};
    }
    const double length = std::sqrt(square) * double{mean[head_dim]};
    for (int32_t count = 0; count <= num_tables_; ++count) {
      const double share = (count + 0.5) / (num_tables_ + 1.0);
      const double angle = std::numbers::pi * (1.0 - std::pow(share, 1.0 / num_signs_));
      table_scores[query * (num_tables_ + 1) + count] = static_cast<float>(offset + length * std::cos(angle));
    }
  }
  planes_.project(lifted.data(), shape_.group, projections.data());
  for (int32_t query = 0; query < shape_.group; ++query) {
    for (int32_t table = 0; table < num_tables_; ++table) {
      const auto id = static_cast<uint16_t>(id_of(&projections[static_cast<size_t>(query) * planes_.num_planes()], table));
      const int64_t at = (int64_t{query} * num_tables_ + table) * id_bytes();
      std::memcpy(state + ids_offset() + at, &id, static_cast<size_t>(id_bytes()));
    }
  }
}

template <typename Id>
void MagicPigSelector::score_ids(const std::byte* state, const ScoreBlocks& blocks, float* scores,
                                 int64_t score_stride) const {
  const auto* table_scores = reinterpret_cast<const float*>(state);  // [group, num_tables + 1] f32
  for (int32_t query = 0; query < shape_.group; ++query) {
    std::array<Id, kMaxTables> ids;  // [num_tables]
    std::memcpy(ids.data(), state + ids_offset() + int64_t{query} * num_tables_ * static_cast<int64_t>(sizeof(Id)),
                static_cast<size_t>(num_tables_) * sizeof(Id));
    for (int32_t block = 0; block < blocks.num_blocks; ++block) {
      std::array<Id, kBlockTokens> counts{};           // [16]
      const std::byte* entry = blocks.entries[block];  // [block_bytes] bytes
      for (int32_t table = 0; table < num_tables_; ++table, entry += kBlockTokens * sizeof(Id)) {
        std::array<Id, kBlockTokens> row;  // [16]
        std::memcpy(row.data(), entry, sizeof(row));
        for (int32_t token = 0; token < kBlockTokens; ++token) {
          counts[token] = static_cast<Id>(counts[token] + (row[token] == ids[table] ? 1 : 0));
        }
      }
      for (int32_t token = 0; token < kBlockTokens; ++token) {
        scores[query * score_stride + int64_t{block} * kBlockTokens + token] =
            table_scores[query * (num_tables_ + 1) + counts[token]];
      }
    }
  }
}

void MagicPigSelector::score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const {
  if (id_bytes() == 1) return score_ids<uint8_t>(state, blocks, scores, score_stride);
  return score_ids<uint16_t>(state, blocks, scores, score_stride);
}

bool parse_signs_and_tables(std::string_view options, int32_t& num_signs, int32_t& num_tables) {
  const char* end = options.data() + options.size();
  const auto [at, error] = std::from_chars(options.data(), end, num_signs);
  if (error != std::errc() || at == end || *at != 'x') return false;
  const auto [last, last_error] = std::from_chars(at + 1, end, num_tables);
  return last_error == std::errc() && last == end;
}

Expected<std::shared_ptr<const Selector>> make_magicpig_selector(const SelectorShape& shape, std::string_view options) {
  int32_t num_signs = MagicPigSelector::kDefaultSigns, num_tables = MagicPigSelector::kDefaultTables;
  const bool parsed = options.empty() || parse_signs_and_tables(options, num_signs, num_tables);
  if (!parsed || num_signs < 1 || num_signs > kMaxSigns || num_tables < 1 || num_tables > kMaxTables) {
    return Status::invalid_argument(
        "selector: magicpig takes KxL after the colon, K signs from 1 to 16 in each of L tables from 1 to 255, like "
        "magicpig:8x75; got '" +
        std::string(options) + "'");
  }
  return std::make_shared<const MagicPigSelector>(shape, num_signs, num_tables);
}

}  // namespace rarefy
