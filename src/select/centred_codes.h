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
// With the option dims=F, the second term adds up that share of the dimensions only, by eights: those in which the group's queries are
// longest. What the others would add has mean zero. Rotated queries are about equally long everywhere, but for chance: of 32 numbers (four
// queries), the longest 7/8 of the eights hold 92 % of the squares.
//
// While a block fills, its mean is that of its first 16 floor(n / 16) keys (zero below 16): an entry stays a function of the
// block's keys, and only every sixteenth token re-encodes the others.
//
// With the option `bound`, an entry also holds for each token r >= |R k - mean - scale * signs| (bf16, rounded up; the rounding of
// the rotation included), so that scale * q . k <= score + |q| r + what the rounding of mean and tables can do, and then the largest
// |v| of the block (bf16, rounded up).
//
// Entry, from a cache line on: a block of cpu/select/sign_planes.h; [head_dim / 2] bytes, 7 + round(mean / step) in halves of bytes; f32 step of
// the mean; bounds. A plane is a line, so that those left out are not fetched.
#pragma once

#include <string>
#include <string_view>

#include "cpu/select/sign_planes.h"
#include "rarefy/select/selector.h"
#include "select/rotation.h"

namespace rarefy {

class CentredSignSelector final : public Selector {
 public:
  static constexpr int32_t kBlockTokens = cpu::kPlaneTokens;
  static constexpr int32_t kMeanTokens = 16;  // the mean moves when so many more tokens are in

  // `options` is "", "bound" or "dims=F"; num_scored_planes: what F comes to.
  CentredSignSelector(const SelectorShape& shape, std::string_view options, int32_t num_scored_planes);

  std::string name() const override { return name_; }
  int32_t block_tokens() const override { return kBlockTokens; }
  int64_t block_bytes() const override { return int64_t{num_lines()} * kLineBytes; }
  double bytes_per_token() const override {  // without what fills the last line
    const int64_t left_out = int64_t{num_planes_ - num_scored_planes_} * cpu::kPlaneTokens;
    return static_cast<double>(end_offset() - left_out) / kBlockTokens;
  }
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
  static constexpr int64_t kLineBytes = 64;
  static_assert(kLineBytes == cpu::kPlaneTokens);
  int64_t mean_offset() const { return cpu::plane_block_bytes(num_planes_); }
  int64_t step_offset() const { return mean_offset() + shape_.head_dim / 2; }
  int64_t residuals_offset() const { return step_offset() + static_cast<int64_t>(sizeof(float)); }
  int64_t end_offset() const { return residuals_offset() + (bounds_ ? 2 * (kBlockTokens + 1) : 0); }
  int32_t num_lines() const { return static_cast<int32_t>((end_offset() + kLineBytes - 1) / kLineBytes); }
  int32_t num_scored_lines() const { return num_lines() - (num_planes_ - num_scored_planes_); }
  // Lines of an entry that scoring reads: the planes in which queries are longest, then all that follows the planes.
  void choose_lines(const float* rotated,   // [group, head_dim] f32
                    uint8_t* lines) const;  // [num_scored_lines] u8; ascending
  // Calls write(queries, some of the blocks, the first of these); offsets are q . mean less what `log_sums` [group] f32 has for
  // each query (nullable).
  template <typename Write>
  void for_runs(const std::byte* state,  // [query_state_bytes] bytes
                const ScoreBlocks& blocks, const float* log_sums, const Write& write) const;
  // Of tokens [first, num_tokens): `centred` [num_tokens - first, head_dim] f32, rotated and without the mean; `entry` [block_bytes] bytes
  void store_bounds(const BlockKeys& block, int32_t first, const float* centred, std::byte* entry) const;
  // `rotated` [num_tokens, head_dim] f32, `entry` [block_bytes] bytes
  void store_mean(const float* rotated, int32_t num_tokens, std::byte* entry) const;

  std::string name_;
  SelectorShape shape_;
  Rotation rotation_;
  int32_t num_planes_;
  int32_t num_scored_planes_;
  bool bounds_;
};

}  // namespace rarefy
