// sign64: sign codes of the difference to the mean of 64 consecutive keys.
//
// Keys of a KV head have much in common (biases, the slow components of RoPE, the topic at hand), and what they share costs sign
// codes most of their one bit. So every block keeps the mean of its rotated keys in 4 bits per dimension, and the codes describe
// what is left:
//
//   score = q . mean + scale * (R q . signs),   signs = sign(R k - mean),   scale = mean over d of |R k - mean|
//
// Bytes per token: head_dim / 8 signs + 1 scale (e4m4) + (head_dim / 2 + 4) / 64 for the mean: 9.6 at head_dim 64, 18.1 at 128.
// (q . signs) is computed from a rounded query (cpu/select/sign_planes.h), q . mean in f32.
//
// While a block fills, its mean is that of its first 16 floor(n / 16) keys (zero below 16): an entry stays a function of the
// block's keys, and only every sixteenth token re-encodes the others.
//
// With the option `bound`, an entry also holds for each token r >= |R k - mean - scale * signs| (bf16, rounded up; the rounding of
// the rotation included), so that scale * q . k <= score + |q| r + what the rounding of mean and tables can do, and then the largest
// |v| of the block (bf16, rounded up).
//
// Entry: f32 step of the mean; [head_dim / 2] bytes, 7 + round(mean / step) in halves of bytes; a block of cpu/select/sign_planes.h.
#pragma once

#include "cpu/select/sign_planes.h"
#include "rarefy/select/selector.h"
#include "select/rotation.h"

namespace rarefy {

class CentredSignSelector final : public Selector {
 public:
  static constexpr int32_t kBlockTokens = cpu::kPlaneTokens;
  static constexpr int32_t kMeanTokens = 16;  // the mean moves when so many more tokens are in

  CentredSignSelector(const SelectorShape& shape, bool bounds);

  std::string name() const override { return bounds_ ? "sign64:bound" : "sign64"; }
  int32_t block_tokens() const override { return kBlockTokens; }
  int64_t block_bytes() const override { return residuals_offset() + (bounds_ ? 2 * (kBlockTokens + 1) : 0); }
  bool reads_values() const override { return bounds_; }
  bool has_bounds() const override { return bounds_; }
  // All keys when the mean changes.
  int32_t first_key_read(int32_t first_new, int32_t num_tokens) const override {
    return first_new > 0 && first_new / kMeanTokens == num_tokens / kMeanTokens ? first_new : 0;
  }
  void encode(HeadId head, const BlockKeys& block, std::byte* entry) const override;  // [block_bytes] bytes
  size_t query_state_bytes() const override;
  void prepare(HeadId head, const float* q, std::byte* state) const override;
  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override;
  bool score_groups(const std::byte* state, const ScoreBlocks& blocks, const float* log_sums,
                    float* group_scores) const override;
  void bound(const std::byte* state, const ScoreBlocks& blocks, float* bounds, int64_t bound_stride) const override;
  void value_bounds(const ScoreBlocks& blocks, float* norms) const override;

 private:
  int64_t codes_offset() const { return static_cast<int64_t>(sizeof(float)) + shape_.head_dim / 2; }
  int64_t residuals_offset() const { return codes_offset() + cpu::plane_block_bytes(num_planes_); }
  // Calls write(queries, some of the blocks, the first of these); offsets are q . mean less what `log_sums` [group] f32 has for
  // each query (nullable).
  template <typename Write>
  void for_runs(const std::byte* state,  // [query_state_bytes] bytes
                const ScoreBlocks& blocks, const float* log_sums, const Write& write) const;
  // Of tokens [first, num_tokens): `centred` [num_tokens - first, head_dim] f32, rotated and without the mean; `entry` [block_bytes] bytes
  void store_bounds(const BlockKeys& block, int32_t first, const float* centred, std::byte* entry) const;
  // `rotated` [num_tokens, head_dim] f32, `entry` [block_bytes] bytes
  void store_mean(const float* rotated, int32_t num_tokens, std::byte* entry) const;

  SelectorShape shape_;
  Rotation rotation_;
  int32_t num_planes_;
  bool bounds_;
};

}  // namespace rarefy
