#include <array>
#include <cstring>

#include "cpu/select/key_rows.h"
#include "select/builtin_selectors.h"

namespace rarefy {
namespace {

class OracleSelector final : public Selector {
 public:
  explicit OracleSelector(const SelectorShape& shape) : shape_(shape) {}

  std::string name() const override { return "oracle"; }
  int32_t block_tokens() const override { return kBlockTokens; }
  int64_t block_bytes() const override { return 0; }
  double bytes_per_token() const override { return static_cast<double>(shape_.head_dim) * size_of(shape_.kv_dtype); }
  void encode(HeadId, const BlockKeys&, std::byte*) const override {}

  size_t query_state_bytes() const override { return sizeof(float) * shape_.group * shape_.head_dim; }
  void prepare(HeadId, const float* q, std::byte* state) const override { std::memcpy(state, q, query_state_bytes()); }
  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override {
    const auto* q = reinterpret_cast<const float*>(state);  // [group, head_dim] f32
    const int64_t row_bytes = blocks.key_token_stride * static_cast<int64_t>(size_of(shape_.kv_dtype));
    for (int32_t block = 0; block < blocks.num_blocks; ++block) {
      std::array<const void*, kBlockTokens> rows;  // [kBlockTokens] pointers to [head_dim] kv_dtype
      for (int32_t token = 0; token < kBlockTokens; ++token) {
        rows[token] = static_cast<const std::byte*>(blocks.keys[block]) + token * row_bytes;
      }
      cpu::dot_rows(q, shape_.group, shape_.head_dim, rows.data(), kBlockTokens, shape_.kv_dtype,
                    scores + int64_t{block} * kBlockTokens, score_stride);
    }
  }

 private:
  static constexpr int32_t kBlockTokens = 16;
  SelectorShape shape_;
};

}  // namespace

Expected<std::shared_ptr<const Selector>> make_oracle_selector(const SelectorShape& shape, std::string_view options) {
  if (!options.empty())
    return Status::invalid_argument("selector: oracle takes no options, got '" + std::string(options) + "'");
  return std::make_shared<const OracleSelector>(shape);
}

}  // namespace rarefy
