// The two selectors that store a few bits per rotated dimension. A key k is rotated to r = R k; each component becomes one of
// a few levels; the stored scale is the least-squares coefficient <r, levels> / <levels, levels>, so that scale * levels is
// the projection of r and a score is E[s | code] for normal components (for signs: the scale is mean |r_d|, which already
// contains the factor sqrt(2 / pi) by which a sign shrinks).
//
//   sign  1 bit:  -1, 1                            head_dim / 8 + 2 bytes per token; correlation 0.80 with the exact score
//   q2    2 bits: -1.5104, -0.4528, 0.4528, 1.5104  head_dim / 4 + 2 bytes per token; correlation 0.94
//
// The four levels and the cut at 0.9816 are Max's for the normal distribution (distortion 0.1175; the best uniform levels
// have 0.1188), relative to the root mean square of r. Correlations are for normal keys. head_dim is padded to 32 (sign) or
// 16 (q2) dimensions.
//
// Layout of an entry: cpu/select/nibble_scores.h. A nibble holds 4 signs or two 2-bit codes.
//
// With the option `bound`, an entry also holds for each token r >= |R k - scale * levels| (bf16, rounded up; the rounding of the
// rotation included), so that scale * q . k <= score + |q| r + what rounding the table can do, and then the largest |v| of the
// block (bf16, rounded up).
#pragma once

#include <array>
#include <memory>

#include "cpu/select/nibble_scores.h"
#include "rarefy/select/selector.h"
#include "select/rotation.h"

namespace rarefy {

struct CodeFormat {
  const char* name = "";
  int32_t bits = 1;               // per dimension: 1 or 2
  std::array<float, 4> levels{};  // [2^bits] f32; value of each code in units of the scale, ascending and symmetric
  float cut = 0.0f;               // 2 bits: |r| / rms above it takes an outer level

  int32_t dims_per_group() const { return 4 / bits; }
};

inline constexpr CodeFormat kSignCodes = {"sign", 1, {-1.0f, 1.0f, 0.0f, 0.0f}, 0.0f};
inline constexpr CodeFormat kTwoBitCodes = {"q2", 2, {-1.5104f, -0.4528f, 0.4528f, 1.5104f}, 0.9816f};

// Lanes of an entry (cpu/select/nibble_scores.h).
int32_t num_code_lanes(const CodeFormat& format, int32_t head_dim);
// What make_nibble_table needs: the level of every dimension of a group under every pattern.
std::array<float, 4 * cpu::kNibblePatterns> code_coefficients(const CodeFormat& format);  // [dims_per_group, 16] f32
// Writes the codes of one token and returns its scale.
float encode_codes(const CodeFormat& format, const float* rotated, int32_t head_dim,
                   int32_t num_lanes,                 // rotated: [head_dim] f32
                   int32_t token, std::byte* entry);  // [block_bytes] bytes

class RotatedCodeSelector final : public Selector {
 public:
  RotatedCodeSelector(const CodeFormat& format, const SelectorShape& shape, bool bounds);

  std::string name() const override { return std::string(format_.name) + (bounds_ ? ":bound" : ""); }
  int32_t block_tokens() const override { return cpu::kNibbleBlockTokens; }
  int64_t block_bytes() const override { return cpu::nibble_block_bytes(num_lanes_) + (bounds_ ? kBoundBytes : 0); }
  bool reads_values() const override { return bounds_; }
  bool has_bounds() const override { return bounds_; }
  int32_t first_key_read(int32_t first_new, int32_t) const override { return first_new; }
  void encode(HeadId head, const BlockKeys& block, std::byte* entry) const override;  // [block_bytes] bytes
  size_t query_state_bytes() const override;
  void prepare(HeadId head, const float* q, std::byte* state) const override;
  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override;
  void bound(const std::byte* state, const ScoreBlocks& blocks, float* bounds, int64_t bound_stride) const override;
  void value_bounds(const ScoreBlocks& blocks, float* norms) const override;

  const Rotation& rotation() const { return rotation_; }
  int32_t num_lanes() const { return num_lanes_; }
  // The tables inside a prepared query state.
  cpu::NibbleTables tables(const std::byte* state) const;  // [query_state_bytes] bytes

 private:
  // Residual norms, then the largest |v|, behind a block of nibble_scores.h.
  static constexpr int64_t kBoundBytes = (cpu::kNibbleBlockTokens + 1) * 2;
  // The residual norm of a token that has been encoded: key [head_dim] f32, rotated [head_dim] f32, entry [block_bytes] bytes
  uint16_t residual_norm_bf16(const float* key, const float* rotated, int32_t token, float scale,
                              const std::byte* entry) const;

  CodeFormat format_;
  SelectorShape shape_;
  Rotation rotation_;
  int32_t num_lanes_;
  bool bounds_;
  alignas(64) std::array<float, 4 * cpu::kNibblePatterns> coefficients_;  // [dims_per_group, 16] f32
};

}  // namespace rarefy
