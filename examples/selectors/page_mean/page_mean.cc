// A selector from outside, in C++: every 16 keys are remembered by their mean, and a token scores as the mean of its 16.
//
//   rarefy bench attention --plugin ./page_mean.so --policy '50x index=page_mean'
#include <bit>
#include <cstring>
#include <string>

#include "rarefy/select/plugin.h"

namespace {

using namespace rarefy;

constexpr int32_t kBlockTokens = 16;

// The upper half of a float is a bf16. Conversions of rarefy/core/dtype.h are not inline: a plugin links against nothing.
uint16_t to_bf16(float value) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16); }
float from_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

class PageMean final : public Selector {
 public:
  explicit PageMean(const SelectorShape& shape) : shape_(shape) {}

  std::string name() const override { return "page_mean"; }
  int32_t block_tokens() const override { return kBlockTokens; }
  int64_t block_bytes() const override { return int64_t{2} * shape_.head_dim; }  // [head_dim] bf16

  // Of the keys alone, whatever came before: a block that fills up is encoded again.
  void encode(HeadId, const BlockKeys& block, std::byte* entry) const override {
    for (int32_t dim = 0; dim < shape_.head_dim; ++dim) {
      float sum = 0.0f;
      for (int32_t token = 0; token < block.num_tokens; ++token) sum += block.keys[token * shape_.head_dim + dim];
      const uint16_t mean = to_bf16(sum / static_cast<float>(block.num_tokens));
      std::memcpy(entry + 2 * dim, &mean, sizeof(mean));
    }
  }

  // The queries as they are: [group, head_dim] f32, multiplied by the attention scale already.
  size_t query_state_bytes() const override { return sizeof(float) * shape_.group * shape_.head_dim; }
  void prepare(HeadId, const float* q, std::byte* state) const override { std::memcpy(state, q, query_state_bytes()); }

  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override {
    const auto* q = reinterpret_cast<const float*>(state);
    for (int32_t block = 0; block < blocks.num_blocks; ++block) {
      const auto* mean = reinterpret_cast<const uint16_t*>(blocks.entries[block]);
      for (int32_t query = 0; query < shape_.group; ++query) {
        float sum = 0.0f;
        for (int32_t dim = 0; dim < shape_.head_dim; ++dim) sum += q[query * shape_.head_dim + dim] * from_bf16(mean[dim]);
        for (int32_t token = 0; token < kBlockTokens; ++token) {
          scores[query * score_stride + block * kBlockTokens + token] = sum;
        }
      }
    }
  }

 private:
  SelectorShape shape_;
};

Expected<std::shared_ptr<const Selector>> make(const SelectorShape& shape, std::string_view options) {
  if (!options.empty()) return Status::invalid_argument("page_mean takes no options, got '" + std::string(options) + "'");
  return std::make_shared<const PageMean>(shape);
}

}  // namespace

extern "C" RAREFY_PLUGIN_EXPORT rarefy_status rarefy_plugin_init(const rarefy_plugin_api* api) {
  return plugin::register_selector(api, {"page_mean", "", "dot product with the mean of 16 keys"}, make);
}
