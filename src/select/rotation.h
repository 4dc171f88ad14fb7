// A fixed pseudo-random rotation: random signs, then a Walsh-Hadamard transform, twice. It spreads every direction over all
// dimensions, so that the components of a rotated key look normal whatever the model's outlier channels, and one scale per
// token is enough. Dot products are preserved: (R q) . (R k) = q . k.
//
// One round is not enough. It leaves the magnitudes of a key with few large channels in a few groups: their signs repeat each
// other, and say nothing about the smaller channels. On keys of a trained model the token that a query looks for then ranked
// below 32 others five times as often as after two rounds, or after a random orthogonal matrix (ADR 8).
//
// A head_dim that is not a power of two is split into descending powers of two (96 = 64 + 32), each rotated on its own.
// The same rotation serves all layers and heads. Immutable; thread-safe.
#pragma once

#include <cstdint>
#include <vector>

namespace rarefy {

class Rotation {
 public:
  explicit Rotation(int32_t head_dim);

  int32_t head_dim() const { return head_dim_; }
  void apply(const float* x,         // [head_dim] f32
             float* rotated) const;  // [head_dim] f32; not x
  // Of each round: sign of each dimension divided by the square root of its block's size; and the sizes of the blocks.
  const std::vector<float>& factors() const { return factors_; }
  const std::vector<int32_t>& block_sizes() const { return block_sizes_; }

 private:
  int32_t head_dim_;
  std::vector<float> factors_;        // [num_rounds, head_dim] f32
  std::vector<int32_t> block_sizes_;  // [num_blocks] i32; powers of two, descending; they add up to head_dim
};

}  // namespace rarefy
