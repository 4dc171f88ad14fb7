// Quest: element-wise minimum and maximum of 16 keys. The score of a page, sum_d max(q_d min_d, q_d max_d), is an upper bound
// of q . k for every key in it, and every token of the page gets it. With q+ = max(q, 0) and q- = min(q, 0) it is one dot
// product of (q-, q+) with (minima, maxima).
//
// bf16: minima rounded down, maxima up (exact for bf16 caches); 4 head_dim bytes per block.
// int8: one affine map of 255 steps over all bounds of the block, minima rounded down, maxima up; 2 head_dim + 8 bytes.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/select/key_rows.h"
#include "rarefy/core/dtype.h"
#include "select/builtin_selectors.h"

namespace rarefy {
namespace {

constexpr int32_t kBlockTokens = 16;
constexpr int32_t kMaxHeadDim = 1024;

// The neighbour of a bf16 value towards plus or minus infinity.
uint16_t next_bf16(uint16_t bits, bool up) {
  if ((bits & 0x7fff) == 0) return up ? 0x0001 : 0x8001;
  const bool negative = (bits & 0x8000) != 0;
  return static_cast<uint16_t>(negative == up ? bits - 1 : bits + 1);
}

uint16_t round_outward(float value, bool up) {
  const BFloat16 nearest = to_bfloat16(value);
  const float rounded = to_float(nearest);
  return (up ? rounded < value : rounded > value) ? next_bf16(nearest.bits, up) : nearest.bits;
}

struct Bounds {
  std::array<float, kMaxHeadDim> minima, maxima;  // [head_dim] f32
};

void find_bounds(const BlockKeys& block, int32_t head_dim, Bounds& bounds) {
  std::copy(block.keys, block.keys + head_dim, bounds.minima.begin());
  std::copy(block.keys, block.keys + head_dim, bounds.maxima.begin());
  for (int32_t token = 1; token < block.num_tokens; ++token) {
    const float* key = block.keys + int64_t{token} * head_dim;  // [head_dim] f32
    for (int32_t dim = 0; dim < head_dim; ++dim) {
      bounds.minima[dim] = std::min(bounds.minima[dim], key[dim]);
      bounds.maxima[dim] = std::max(bounds.maxima[dim], key[dim]);
    }
  }
}

class QuestSelector : public Selector {
 public:
  explicit QuestSelector(const SelectorShape& shape) : shape_(shape) {}
  int32_t block_tokens() const override { return kBlockTokens; }

 protected:
  // (q-, q+) of one query.
  void split_signs(const float* q, float* row) const {  // q: [head_dim] f32; row: [2, head_dim] f32
    for (int32_t dim = 0; dim < shape_.head_dim; ++dim) {
      row[dim] = std::min(q[dim], 0.0f);
      row[shape_.head_dim + dim] = std::max(q[dim], 0.0f);
    }
  }
  // Calls body(block, dots) for the dot products of each block's bounds, [2, head_dim] `dtype`, with the rows (q-, q+):
  // rows [group, 2, head_dim] f32.
  template <typename Body>
  void for_each_block(const float* rows, const ScoreBlocks& blocks, DType dtype, Body body) const {
    std::array<const void*, kChunkBlocks> bounds;      // [count] pointers to [2, head_dim] dtype
    std::array<float, kMaxGroup * kChunkBlocks> dots;  // [group, kChunkBlocks] f32
    for (int32_t first = 0; first < blocks.num_blocks; first += kChunkBlocks) {
      const int32_t count = std::min(kChunkBlocks, blocks.num_blocks - first);
      std::copy_n(blocks.entries + first, count, bounds.begin());
      cpu::dot_rows(rows, shape_.group, 2 * shape_.head_dim, bounds.data(), count, dtype, dots.data(), kChunkBlocks);
      for (int32_t i = 0; i < count; ++i) body(first + i, dots.data() + i);
    }
  }
  void spread(float page_score, int32_t query, int32_t block,
              float* scores,  // [group, score_stride] f32
              int64_t score_stride) const {
    std::fill_n(scores + query * score_stride + int64_t{block} * kBlockTokens, kBlockTokens, page_score);
  }

  static constexpr int32_t kChunkBlocks = 16;
  SelectorShape shape_;
};

class QuestBf16Selector final : public QuestSelector {
 public:
  using QuestSelector::QuestSelector;
  std::string name() const override { return "quest16"; }
  int64_t block_bytes() const override { return int64_t{4} * shape_.head_dim; }

  void encode(HeadId, const BlockKeys& block, std::byte* entry) const override {
    Bounds bounds;
    find_bounds(block, shape_.head_dim, bounds);
    std::array<uint16_t, 2 * kMaxHeadDim> rounded;  // [2, head_dim] bf16 bits
    for (int32_t dim = 0; dim < shape_.head_dim; ++dim) {
      rounded[dim] = round_outward(bounds.minima[dim], false);
      rounded[shape_.head_dim + dim] = round_outward(bounds.maxima[dim], true);
    }
    std::memcpy(entry, rounded.data(), static_cast<size_t>(block_bytes()));
  }

  size_t query_state_bytes() const override { return sizeof(float) * 2 * shape_.group * shape_.head_dim; }
  void prepare(HeadId, const float* q, std::byte* state) const override {
    auto* rows = reinterpret_cast<float*>(state);  // [group, 2, head_dim] f32
    for (int32_t query = 0; query < shape_.group; ++query) {
      split_signs(q + int64_t{query} * shape_.head_dim, rows + int64_t{2} * query * shape_.head_dim);
    }
  }
  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override {
    const auto* rows = reinterpret_cast<const float*>(state);  // [group, 2, head_dim] f32
    for_each_block(rows, blocks, DType::bf16, [&](int32_t block, const float* dots) {
      for (int32_t query = 0; query < shape_.group; ++query) {
        spread(dots[query * kChunkBlocks], query, block, scores, score_stride);
      }
    });
  }
};

class QuestInt8Selector final : public QuestSelector {
 public:
  using QuestSelector::QuestSelector;
  std::string name() const override { return "quest16:int8"; }
  int64_t block_bytes() const override { return int64_t{2} * shape_.head_dim + kMapBytes; }

  // Entry: codes [2, head_dim] u8, then the map: value = low + step * code.
  void encode(HeadId, const BlockKeys& block, std::byte* entry) const override {
    const int32_t head_dim = shape_.head_dim;
    Bounds bounds;
    find_bounds(block, head_dim, bounds);
    const float low = *std::min_element(bounds.minima.begin(), bounds.minima.begin() + head_dim);
    const float high = *std::max_element(bounds.maxima.begin(), bounds.maxima.begin() + head_dim);
    float step = (high - low) / kSteps;
    while (low + step * kSteps < high) step = std::nextafter(step, std::numeric_limits<float>::infinity());
    const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
    std::array<uint8_t, 2 * kMaxHeadDim> codes;  // [2, head_dim] u8
    for (int32_t dim = 0; dim < head_dim; ++dim) {
      float down = std::clamp(std::floor((bounds.minima[dim] - low) * inverse), 0.0f, kSteps);
      while (down > 0.0f && low + step * down > bounds.minima[dim]) down -= 1.0f;
      float up = std::clamp(std::ceil((bounds.maxima[dim] - low) * inverse), 0.0f, kSteps);
      while (up < kSteps && low + step * up < bounds.maxima[dim]) up += 1.0f;
      codes[dim] = static_cast<uint8_t>(down);
      codes[head_dim + dim] = static_cast<uint8_t>(up);
    }
    std::memcpy(entry, codes.data(), static_cast<size_t>(2 * head_dim));
    const float map[2] = {low, step};
    std::memcpy(entry + 2 * head_dim, map, kMapBytes);
  }

  // State: sums of each query [16] f32, then rows [group, 2, head_dim] f32.
  size_t query_state_bytes() const override { return sizeof(float) * (kMaxGroup + 2 * shape_.group * shape_.head_dim); }
  void prepare(HeadId, const float* q, std::byte* state) const override {
    auto* sums = reinterpret_cast<float*>(state);  // [group] f32
    float* rows = sums + kMaxGroup;                // [group, 2, head_dim] f32
    for (int32_t query = 0; query < shape_.group; ++query) {
      const float* from = q + int64_t{query} * shape_.head_dim;  // [head_dim] f32
      split_signs(from, rows + int64_t{2} * query * shape_.head_dim);
      sums[query] = 0.0f;
      for (int32_t dim = 0; dim < shape_.head_dim; ++dim) sums[query] += from[dim];
    }
  }
  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override {
    const auto* sums = reinterpret_cast<const float*>(state);  // [group] f32
    const float* rows = sums + kMaxGroup;                      // [group, 2, head_dim] f32
    for_each_block(rows, blocks, DType::u8, [&](int32_t block, const float* dots) {
      float map[2];
      std::memcpy(map, blocks.entries[block] + 2 * shape_.head_dim, kMapBytes);
      for (int32_t query = 0; query < shape_.group; ++query) {
        spread(map[0] * sums[query] + map[1] * dots[query * kChunkBlocks], query, block, scores, score_stride);
      }
    });
  }

 private:
  static constexpr int64_t kMapBytes = 2 * sizeof(float);
  static constexpr float kSteps = 255.0f;
};

}  // namespace

Expected<std::shared_ptr<const Selector>> make_quest_selector(const SelectorShape& shape, std::string_view options) {
  if (shape.head_dim > kMaxHeadDim) {
    return Status::unsupported("selector: quest16 needs a head_dim of at most " + std::to_string(kMaxHeadDim) + ", got " +
                               std::to_string(shape.head_dim));
  }
  if (options.empty() || options == "bf16") return std::make_shared<const QuestBf16Selector>(shape);
  if (options == "int8") return std::make_shared<const QuestInt8Selector>(shape);
  return Status::invalid_argument("selector: quest16 takes bf16 or int8 after the colon, got '" + std::string(options) +
                                  "'");
}

}  // namespace rarefy
