#include "select/product_codes.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <vector>

#include "cpu/select/centroids.h"
#include "cpu/select/nibble_scores.h"
#include "select/builtin_selectors.h"
#include "select/k_means.h"
#include "select/nibble_state.h"

namespace rarefy {
namespace {

constexpr int32_t kMaxHeadDim = 1024;
constexpr int32_t kMinBits = 4, kMaxBits = 8;

}  // namespace

ProductCodeSelector::ProductCodeSelector(const SelectorShape& shape, int32_t num_pieces, int32_t bits)
    : shape_(shape), num_pieces_(num_pieces), bits_(bits), num_lanes_(cpu::nibble_lanes(num_pieces)) {}

int64_t ProductCodeSelector::block_bytes() const {
  return uses_nibbles() ? cpu::nibble_block_bytes(num_lanes_, false) : int64_t{kBlockTokens} * num_pieces_ * bits_ / 8;
}

int64_t ProductCodeSelector::trained_bytes() const {
  return static_cast<int64_t>(sizeof(float)) * num_centroids() * (shape_.head_dim + num_pieces_);
}

int32_t ProductCodeSelector::training_tokens() const { return std::max(1024, 16 * num_centroids()); }

const float* ProductCodeSelector::centroids(const std::byte* trained, int32_t piece) const {
  return reinterpret_cast<const float*>(trained) + int64_t{piece} * piece_dim() * num_centroids();
}

const float* ProductCodeSelector::half_norms(const std::byte* trained, int32_t piece) const {
  return reinterpret_cast<const float*>(trained) + (int64_t{shape_.head_dim} + piece) * num_centroids();
}

Status ProductCodeSelector::train(HeadId head, const float* keys, int32_t num_tokens, std::byte* trained) const {
  RAREFY_RETURN_IF_ERROR(check_finite(keys, int64_t{num_tokens} * shape_.head_dim, name(), head));
  const int32_t num_points = num_tokens - kSkippedTokens, dim = piece_dim();
  std::vector<float> points(static_cast<size_t>(num_points) * dim);
  for (int32_t piece = 0; piece < num_pieces_; ++piece) {
    const float* first = keys + int64_t{kSkippedTokens} * shape_.head_dim + int64_t{piece} * dim;
    for (int32_t i = 0; i < num_points; ++i)
      std::copy_n(first + int64_t{i} * shape_.head_dim, dim, &points[static_cast<size_t>(i) * dim]);
    k_means(points.data(), num_points, dim, num_centroids(), static_cast<uint32_t>(piece),
            const_cast<float*>(centroids(trained, piece)), const_cast<float*>(half_norms(trained, piece)));
  }
  return {};
}

int32_t ProductCodeSelector::code(const std::byte* entry, int32_t token, int32_t piece) const {
  if (uses_nibbles()) {
    const auto byte = static_cast<uint32_t>(entry[cpu::nibble_code_offset(piece / 2, token)]);
    return static_cast<int32_t>(piece % 2 == 0 ? byte & 15u : byte >> 4);
  }
  const int32_t bit = (token * num_pieces_ + piece) * bits_;
  uint32_t bytes = static_cast<uint32_t>(entry[bit / 8]);
  if (bit % 8 + bits_ > 8) bytes |= static_cast<uint32_t>(entry[bit / 8 + 1]) << 8;
  return static_cast<int32_t>((bytes >> (bit % 8)) & ((1u << bits_) - 1u));
}

void ProductCodeSelector::set_code(std::byte* entry, int32_t token, int32_t piece, int32_t code) const {
  const auto put = [&](int64_t at, uint32_t mask, uint32_t value) {
    entry[at] = static_cast<std::byte>((static_cast<uint32_t>(entry[at]) & ~mask) | (value & mask));
  };
  const auto value = static_cast<uint32_t>(code);
  if (uses_nibbles()) {
    const int64_t at = cpu::nibble_code_offset(piece / 2, token);
    return piece % 2 == 0 ? put(at, 0x0f, value) : put(at, 0xf0, value << 4);
  }
  const int32_t bit = (token * num_pieces_ + piece) * bits_;
  const uint32_t mask = ((1u << bits_) - 1u) << (bit % 8);
  put(bit / 8, mask & 0xff, value << (bit % 8));
  if (bit % 8 + bits_ > 8) put(bit / 8 + 1, mask >> 8, (value << (bit % 8)) >> 8);
}

void ProductCodeSelector::encode(HeadId head, const BlockKeys& block, std::byte* entry) const {
  for (int32_t token = block.first_new; token < block.num_tokens; ++token) {
    const float* key = block.keys + int64_t{token} * shape_.head_dim;  // [head_dim] f32
    for (int32_t piece = 0; piece < num_pieces_; ++piece) {
      set_code(entry, token, piece,
               cpu::nearest_centroid(key + int64_t{piece} * piece_dim(), piece_dim(), centroids(head.trained, piece),
                                     half_norms(head.trained, piece), num_centroids()));
    }
    // Pieces that only fill up lanes: their tables are flat.
    for (int32_t piece = num_pieces_; uses_nibbles() && piece < 2 * num_lanes_; ++piece) set_code(entry, token, piece, 0);
  }
}

size_t ProductCodeSelector::query_state_bytes() const {
  if (uses_nibbles()) return NibbleState::bytes(shape_.group, num_lanes_);
  return sizeof(float) * num_pieces_ * num_centroids() * padded_group();
}

float ProductCodeSelector::table_step(const std::byte* state, int32_t query) const {
  return NibbleState::step(state, query);
}

// B = 4: a NibbleState. Else [num_pieces, num_centroids, padded_group] f32.
void ProductCodeSelector::prepare(HeadId head, const float* q, std::byte* state) const {
  if (!uses_nibbles()) std::memset(state, 0, query_state_bytes());
  std::vector<float> dots(static_cast<size_t>(num_pieces_) * num_centroids());  // [num_pieces, num_centroids] f32
  for (int32_t query = 0; query < shape_.group; ++query) {
    for (int32_t piece = 0; piece < num_pieces_; ++piece) {
      cpu::centroid_dots(q + int64_t{query} * shape_.head_dim + int64_t{piece} * piece_dim(), piece_dim(),
                         centroids(head.trained, piece), num_centroids(),
                         &dots[static_cast<size_t>(piece) * num_centroids()]);
    }
    if (uses_nibbles()) {
      NibbleState::set(state, query, dots.data(), num_pieces_, num_lanes_);
    } else {
      auto* table = reinterpret_cast<float*>(state);  // [num_pieces, num_centroids, padded_group] f32
      for (size_t i = 0; i < dots.size(); ++i) table[i * padded_group() + query] = dots[i];
    }
  }
}

template <int32_t kWidth>
void ProductCodeSelector::score_stream(const std::byte* state, const ScoreBlocks& blocks, float* scores,
                                       int64_t score_stride) const {
  const auto* table = reinterpret_cast<const float*>(state);  // [num_pieces, num_centroids, kWidth] f32
  for (int32_t block = 0; block < blocks.num_blocks; ++block) {
    for (int32_t token = 0; token < kBlockTokens; ++token) {
      std::array<float, kWidth> sums{};  // [kWidth] f32
      for (int32_t piece = 0; piece < num_pieces_; ++piece) {
        const int64_t row = int64_t{piece} * num_centroids() + code(blocks.entries[block], token, piece);
        for (int32_t i = 0; i < kWidth; ++i) sums[i] += table[row * kWidth + i];
      }
      for (int32_t query = 0; query < shape_.group; ++query) {
        scores[query * score_stride + int64_t{block} * kBlockTokens + token] = sums[query];
      }
    }
  }
}

void ProductCodeSelector::score(const std::byte* state, const ScoreBlocks& blocks, float* scores,
                                int64_t score_stride) const {
  if (!uses_nibbles()) {
    switch (padded_group() / 4) {
      case 1: return score_stream<4>(state, blocks, scores, score_stride);
      case 2: return score_stream<8>(state, blocks, scores, score_stride);
      case 3: return score_stream<12>(state, blocks, scores, score_stride);
      default: return score_stream<16>(state, blocks, scores, score_stride);
    }
  }
  NibbleState::score(state, shape_.group, num_lanes_, blocks, scores, score_stride);
}

// "pq16x4"
bool is_product_code_name(std::string_view name) {
  return name.starts_with("pq") && name.size() > 2 && name[2] >= '0' && name[2] <= '9';
}

Expected<std::shared_ptr<const Selector>> make_product_code_selector(const SelectorShape& shape, std::string_view name,
                                                                     std::string_view options) {
  int32_t num_pieces = 0, bits = 0;
  const char* end = name.data() + name.size();
  const auto first = std::from_chars(name.data() + 2, end, num_pieces);
  const bool parsed = first.ec == std::errc() && first.ptr != end && *first.ptr == 'x' &&
                      std::from_chars(first.ptr + 1, end, bits).ptr == end;
  if (!parsed || bits < kMinBits || bits > kMaxBits || num_pieces < 1) {
    return Status::invalid_argument("selector: expected pqMxB with M pieces of 4 to 8 bits B each, like pq16x4, got '" +
                                    std::string(name) + "'");
  }
  if (!options.empty()) {
    return Status::invalid_argument("selector: " + std::string(name) + " takes no options, got '" + std::string(options) +
                                    "'");
  }
  if (shape.head_dim % num_pieces != 0 || shape.head_dim > kMaxHeadDim) {
    return Status::unsupported("selector: " + std::string(name) + " cuts keys into " + std::to_string(num_pieces) +
                               " equal pieces; head_dim must be a multiple of that and at most " +
                               std::to_string(kMaxHeadDim) + ", got " + std::to_string(shape.head_dim));
  }
  return std::make_shared<const ProductCodeSelector>(shape, num_pieces, bits);
}

}  // namespace rarefy
