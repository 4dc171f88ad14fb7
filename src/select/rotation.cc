#include "select/rotation.h"

#include <cmath>

#include "cpu/select/hadamard.h"
#include "rarefy/core/rng.h"

namespace rarefy {
namespace {

// Part of the index format: other signs give other codes.
constexpr uint64_t kRotationSeed = 0x52617265667931ull;
constexpr uint32_t kNumRounds = 2;

}  // namespace

Rotation::Rotation(int32_t head_dim) : head_dim_(head_dim) {
  for (int32_t size = 1 << 30; size > 0; size /= 2) {
    if ((head_dim & size) != 0) block_sizes_.push_back(size);
  }
  const std::array<uint32_t, 2> key = {static_cast<uint32_t>(kRotationSeed), static_cast<uint32_t>(kRotationSeed >> 32)};
  for (uint32_t round = 0; round < kNumRounds; ++round) {
    uint32_t dim = 0;
    for (int32_t size : block_sizes_) {
      const float magnitude = 1.0f / std::sqrt(static_cast<float>(size));
      for (int32_t i = 0; i < size; ++i, ++dim) {
        const auto bits = philox4x32({dim, round, 0, 0}, key);
        factors_.push_back((bits[0] & 1u) != 0 ? -magnitude : magnitude);
      }
    }
  }
}

void Rotation::apply(const float* x, float* rotated) const {
  const float* from = x;  // [head_dim] f32
  for (size_t first = 0; first < factors_.size(); first += static_cast<size_t>(head_dim_)) {
    for (int32_t dim = 0; dim < head_dim_; ++dim) rotated[dim] = from[dim] * factors_[first + static_cast<size_t>(dim)];
    from = rotated;
    float* block = rotated;  // [size] f32
    for (int32_t size : block_sizes_) {
      cpu::hadamard(block, size);
      block += size;
    }
  }
}

}  // namespace rarefy
