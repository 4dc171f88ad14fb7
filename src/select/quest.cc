// Quest: element-wise minimum and maximum of a page of 16 or 32 keys. The score of a page, sum_d max(q_d min_d, q_d max_d), is
// an upper bound of q . k for every key in it, and every token of the page gets it. With q+ = max(q, 0) and q- = min(q, 0) it is
// one dot product of (q-, q+) with (minima, maxima).
//
//   bf16  minima rounded down, maxima up (exact for bf16 caches): 4 head_dim bytes per page.
//   int8  one affine map of 255 steps over all bounds of the page, minima rounded down, maxima up: 2 head_dim + 8 bytes.
//   int4  15 steps of one size from the smallest minimum and from the smallest maximum: head_dim + 6 bytes.
//
// With `bound`, two more bytes: the largest |v| of the page (bf16, rounded up), for the bounded mode.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/select/key_rows.h"
#include "select/builtin_selectors.h"
#include "select/outward.h"

namespace rarefy {
namespace {

constexpr int32_t kMaxHeadDim = 1024;
constexpr int32_t kChunkBlocks = 16;  // pages scored at a time

enum class Format { bf16, int8, int4 };

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

// The code of a lower (or upper) bound on the grid low + step * code; 0 for what is not a number.
uint8_t code_below(float value, float low, float step, float inverse, float last) {
  float code = std::floor((value - low) * inverse);
  code = code > 0.0f ? std::min(code, last) : 0.0f;
  while (code > 0.0f && low + step * code > value) code -= 1.0f;
  return static_cast<uint8_t>(code);
}
uint8_t code_above(float value, float low, float step, float inverse, float last) {
  float code = std::ceil((value - low) * inverse);
  code = code > 0.0f ? std::min(code, last) : 0.0f;
  while (code < last && low + step * code < value) code += 1.0f;
  return static_cast<uint8_t>(code);
}

// Parts of a query state, before the rows.
struct StateHead {
  float negative_sums[kMaxGroup];  // [group] f32; of q-
  float positive_sums[kMaxGroup];  // [group] f32; of q+
  float steps[kMaxGroup];          // [group] f32; of the rounded rows (int4)
};
static_assert(sizeof(StateHead) % 64 == 0);

class QuestSelector final : public Selector {
 public:
  QuestSelector(const SelectorShape& shape, int32_t block_tokens, Format format, bool bounds)
      : shape_(shape), block_tokens_(block_tokens), format_(format), bounds_(bounds) {}

  std::string name() const override {
    std::string text = "quest" + std::to_string(block_tokens_);
    if (format_ != Format::bf16) text += format_ == Format::int8 ? ":int8" : ":int4";
    return bounds_ ? text + ":bound" : text;
  }
  int32_t block_tokens() const override { return block_tokens_; }
  int64_t block_bytes() const override { return page_bytes() + (bounds_ ? kNormBytes : 0); }
  bool scores_blocks() const override { return true; }
  bool reads_values() const override { return bounds_; }
  bool has_bounds() const override { return bounds_; }

  void encode(HeadId, const BlockKeys& block, std::byte* entry) const override {
    Bounds bounds;
    find_bounds(block, shape_.head_dim, bounds);
    switch (format_) {
      case Format::bf16: encode_bf16(bounds, entry); break;
      case Format::int8: encode_int8(bounds, entry); break;
      case Format::int4: encode_int4(bounds, entry); break;
    }
    if (!bounds_) return;
    const uint16_t norm = largest_norm_bf16(block.values, block.num_tokens, shape_.head_dim);
    std::memcpy(entry + page_bytes(), &norm, sizeof(norm));
  }

  size_t query_state_bytes() const override {
    const size_t element = format_ == Format::int4 ? sizeof(int16_t) : sizeof(float);
    return sizeof(StateHead) + element * 2 * shape_.group * shape_.head_dim;
  }
  // State: the head, then rows (q-, q+): [group, 2, head_dim] f32, or i16 for int4.
  void prepare(HeadId, const float* q, std::byte* state) const override {
    const int32_t head_dim = shape_.head_dim;
    auto& head = *reinterpret_cast<StateHead*>(state);
    std::array<float, 2 * kMaxHeadDim> split;  // [2, head_dim] f32
    for (int32_t query = 0; query < shape_.group; ++query) {
      const float* from = q + int64_t{query} * head_dim;  // [head_dim] f32
      head.negative_sums[query] = head.positive_sums[query] = 0.0f;
      for (int32_t dim = 0; dim < head_dim; ++dim) {
        split[dim] = std::min(from[dim], 0.0f);
        split[head_dim + dim] = std::max(from[dim], 0.0f);
        head.negative_sums[query] += split[dim];
        head.positive_sums[query] += split[head_dim + dim];
      }
      const int64_t at = int64_t{2} * query * head_dim;
      if (format_ == Format::int4) {
        head.steps[query] = cpu::round_to_i16(split.data(), 2 * head_dim, rounded_rows(state) + at);
      } else {
        std::copy_n(split.begin(), 2 * head_dim, rows(state) + at);
      }
    }
  }

  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override {
    for_each_chunk(state, blocks, [&](int32_t first, int32_t count, const float* pages) {
      for (int32_t query = 0; query < shape_.group; ++query) {
        for (int32_t i = 0; i < count; ++i) {
          spread(pages[query * kChunkBlocks + i], query, first + i, scores, score_stride);
        }
      }
    });
  }

  void bound(const std::byte* state, const ScoreBlocks& blocks, float* bounds, int64_t bound_stride) const override {
    const auto& head = *reinterpret_cast<const StateHead*>(state);
    for_each_chunk(state, blocks, [&](int32_t first, int32_t count, const float* pages) {
      for (int32_t i = 0; i < count; ++i) {
        const Extent extent = stored_extent(blocks.entries[first + i]);
        for (int32_t query = 0; query < shape_.group; ++query) {
          const float q_norm = head.positive_sums[query] - head.negative_sums[query];  // sum of |q_d|
          // Sums of 2 head_dim products, the sums of q themselves, the maps, and the rounding of the scaled query.
          float slack = static_cast<float>(4 * shape_.head_dim + 32) * kUnitRoundoff * q_norm * extent.largest;
          // int4: half a step of the rounded query for each component that is not zero.
          if (format_ == Format::int4)
            slack += 0.51f * head.steps[query] * static_cast<float>(shape_.head_dim) * extent.range;
          spread(pages[query * kChunkBlocks + i] + slack, query, first + i, bounds, bound_stride);
        }
      }
    });
  }
  void value_bounds(const ScoreBlocks& blocks, float* norms) const override {
    for (int32_t i = 0; i < blocks.num_blocks; ++i) norms[i] = load_bf16(blocks.entries[i] + page_bytes());
  }

 private:
  static constexpr int64_t kNormBytes = sizeof(uint16_t);
  static constexpr float kSteps8 = 255.0f, kSteps4 = 15.0f;

  // How large stored bounds can be, and how far apart (int4).
  struct Extent {
    float largest = 0.0f, range = 0.0f;
  };

  int64_t page_bytes() const {
    const int64_t head_dim = shape_.head_dim;
    switch (format_) {
      case Format::bf16: return 4 * head_dim;
      case Format::int8: return 2 * head_dim + 2 * static_cast<int64_t>(sizeof(float));
      default: return head_dim + 3 * static_cast<int64_t>(sizeof(uint16_t));
    }
  }
  // state [query_state_bytes] bytes
  static float* rows(std::byte* state) { return reinterpret_cast<float*>(state + sizeof(StateHead)); }
  static int16_t* rounded_rows(std::byte* state) { return reinterpret_cast<int16_t*>(state + sizeof(StateHead)); }

  // Entry: [2, head_dim] bf16.
  void encode_bf16(const Bounds& bounds, std::byte* entry) const {
    std::array<uint16_t, 2 * kMaxHeadDim> rounded;  // [2, head_dim] bf16 bits
    for (int32_t dim = 0; dim < shape_.head_dim; ++dim) {
      rounded[dim] = bf16_outward(bounds.minima[dim], false);
      rounded[shape_.head_dim + dim] = bf16_outward(bounds.maxima[dim], true);
    }
    std::memcpy(entry, rounded.data(), static_cast<size_t>(page_bytes()));
  }

  // Entry: codes [2, head_dim] u8, then the map as two f32: value = low + step * code.
  void encode_int8(const Bounds& bounds, std::byte* entry) const {
    const int32_t head_dim = shape_.head_dim;
    const float low = *std::min_element(bounds.minima.begin(), bounds.minima.begin() + head_dim);
    const float high = *std::max_element(bounds.maxima.begin(), bounds.maxima.begin() + head_dim);
    float step = (high - low) / kSteps8;
    while (low + step * kSteps8 < high) step = std::nextafter(step, std::numeric_limits<float>::infinity());
    const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
    auto* codes = reinterpret_cast<uint8_t*>(entry);  // [2, head_dim] u8
    for (int32_t dim = 0; dim < head_dim; ++dim) {
      codes[dim] = code_below(bounds.minima[dim], low, step, inverse, kSteps8);
      codes[head_dim + dim] = code_above(bounds.maxima[dim], low, step, inverse, kSteps8);
    }
    const float map[2] = {low, step};
    std::memcpy(entry + 2 * head_dim, map, sizeof(map));
  }

  // Entry: byte d holds the code of minimum d in its low half and of maximum d in its high half; then as three bf16 where minima
  // begin, where maxima begin, and the step.
  void encode_int4(const Bounds& bounds, std::byte* entry) const {
    const int32_t head_dim = shape_.head_dim;
    const auto [min_low, min_high] = std::minmax_element(bounds.minima.begin(), bounds.minima.begin() + head_dim);
    const auto [max_low, max_high] = std::minmax_element(bounds.maxima.begin(), bounds.maxima.begin() + head_dim);
    std::array<uint16_t, 3> map = {bf16_outward(*min_low, false), bf16_outward(*max_low, false), 0};  // [3] bf16 bits
    const float low = bf16_to_float(map[0]), low_max = bf16_to_float(map[1]);
    map[2] = bf16_outward(std::max(*min_high - low, *max_high - low_max) / kSteps4, true);
    while (low_max + bf16_to_float(map[2]) * kSteps4 < *max_high) map[2] = next_bf16(map[2], true);
    const float step = bf16_to_float(map[2]);
    const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
    for (int32_t dim = 0; dim < head_dim; ++dim) {
      const uint32_t below = code_below(bounds.minima[dim], low, step, inverse, kSteps4);
      const uint32_t above = code_above(bounds.maxima[dim], low_max, step, inverse, kSteps4);
      entry[dim] = static_cast<std::byte>(below | above << 4);
    }
    std::memcpy(entry + head_dim, map.data(), sizeof(map));
  }

  Extent stored_extent(const std::byte* entry) const {
    const int32_t head_dim = shape_.head_dim;
    if (format_ == Format::int8) {
      float map[2];
      std::memcpy(map, entry + 2 * head_dim, sizeof(map));
      return {2.0f * std::abs(map[0]) + kSteps8 * map[1], 0.0f};
    }
    if (format_ == Format::int4) {
      const float range = kSteps4 * load_bf16(entry + head_dim + 4);
      const float lows = std::abs(load_bf16(entry + head_dim)) + std::abs(load_bf16(entry + head_dim + 2));
      return {2.0f * (lows + range), range};
    }
    std::array<uint16_t, 2 * kMaxHeadDim> bits;  // [2, head_dim] bf16 bits
    std::memcpy(bits.data(), entry, static_cast<size_t>(page_bytes()));
    int16_t largest = 0;
    for (int32_t i = 0; i < 2 * head_dim; ++i) largest = std::max(largest, static_cast<int16_t>(bits[i] & 0x7fff));
    return {bf16_to_float(static_cast<uint16_t>(largest)), 0.0f};
  }

  // Calls body(first, count, pages) with the scores of a few pages at a time: pages [group, kChunkBlocks] f32.
  template <typename Body>
  void for_each_chunk(const std::byte* state, const ScoreBlocks& blocks, Body body) const {
    constexpr int32_t kScores = kMaxGroup * kChunkBlocks;
    const int32_t head_dim = shape_.head_dim;
    const auto& head = *reinterpret_cast<const StateHead*>(state);
    const std::byte* query_rows = state + sizeof(StateHead);  // [group, 2, head_dim] f32 or i16
    std::array<const void*, kChunkBlocks> entries;            // [count] pointers to [page_bytes] bytes
    alignas(64) std::array<float, kScores> pages;             // [group, kChunkBlocks] f32
    std::array<int32_t, kScores> dots;                        // [group, kChunkBlocks] i32
    for (int32_t first = 0; first < blocks.num_blocks; first += kChunkBlocks) {
      const int32_t count = std::min(kChunkBlocks, blocks.num_blocks - first);
      std::copy_n(blocks.entries + first, count, entries.begin());
      if (format_ == Format::int4) {
        cpu::dot_nibble_rows(reinterpret_cast<const int16_t*>(query_rows), shape_.group, 2 * head_dim, entries.data(),
                             count, dots.data(), kChunkBlocks);
      } else {
        cpu::dot_rows(reinterpret_cast<const float*>(query_rows), shape_.group, 2 * head_dim, entries.data(), count,
                      format_ == Format::bf16 ? DType::bf16 : DType::u8, pages.data(), kChunkBlocks);
      }
      for (int32_t i = 0; i < count && format_ != Format::bf16; ++i) {
        const std::byte* entry = blocks.entries[first + i];  // [block_bytes] bytes
        for (int32_t query = 0; query < shape_.group; ++query) {
          float& page = pages[query * kChunkBlocks + i];
          const float below = head.negative_sums[query], above = head.positive_sums[query];
          if (format_ == Format::int8) {
            float map[2];
            std::memcpy(map, entry + 2 * head_dim, sizeof(map));
            page = map[0] * (below + above) + map[1] * page;
          } else {
            const float step = load_bf16(entry + head_dim + 4) * head.steps[query];
            page = load_bf16(entry + head_dim) * below + load_bf16(entry + head_dim + 2) * above +
                   step * static_cast<float>(dots[query * kChunkBlocks + i]);
          }
        }
      }
      body(first, count, pages.data());
    }
  }
  void spread(float page_score, int32_t query, int32_t block,
              float* scores,  // [group, score_stride] f32
              int64_t score_stride) const {
    std::fill_n(scores + query * score_stride + int64_t{block} * block_tokens_, block_tokens_, page_score);
  }

  SelectorShape shape_;
  int32_t block_tokens_;
  Format format_;
  bool bounds_;
};

Expected<std::shared_ptr<const Selector>> make_quest(const SelectorShape& shape, int32_t block_tokens,
                                                     std::string_view options) {
  const std::string name = "quest" + std::to_string(block_tokens);
  if (shape.head_dim > kMaxHeadDim) {
    return Status::unsupported("selector: " + name + " needs a head_dim of at most " + std::to_string(kMaxHeadDim) +
                               ", got " + std::to_string(shape.head_dim));
  }
  Format format = Format::bf16;
  bool bounds = false;
  for (std::string_view rest = options; !rest.empty();) {
    const std::string_view option = take_option(rest);
    if (option == "bound") {
      bounds = true;
    } else if (option == "bf16" || option == "int8" || option == "int4") {
      format = option == "bf16" ? Format::bf16 : option == "int8" ? Format::int8 : Format::int4;
    } else {
      return Status::invalid_argument("selector: " + name + " takes bf16, int8 or int4 after the colon, and :bound, got '" +
                                      std::string(options) + "'");
    }
  }
  return std::make_shared<const QuestSelector>(shape, block_tokens, format, bounds);
}

}  // namespace

Expected<std::shared_ptr<const Selector>> make_quest16_selector(const SelectorShape& shape, std::string_view options) {
  return make_quest(shape, 16, options);
}

Expected<std::shared_ptr<const Selector>> make_quest32_selector(const SelectorShape& shape, std::string_view options) {
  return make_quest(shape, 32, options);
}

}  // namespace rarefy
