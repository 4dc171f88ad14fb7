#include "select/hash_planes.h"

#include <cmath>
#include <numbers>

#include "cpu/select/key_rows.h"
#include "rarefy/core/rng.h"

namespace rarefy {
namespace {

constexpr uint32_t kSeed = 0x706c616e;
// (0, 1]
double uniform(uint32_t bits) { return (static_cast<double>(bits) + 1.0) * 0x1p-32; }

}  // namespace

HashPlanes::HashPlanes(int32_t num_planes, int32_t dim, uint32_t seed) : num_planes_(num_planes), dim_(dim) {
  components_.reserve(static_cast<size_t>(num_planes) * dim);
  for (int32_t plane = 0; plane < num_planes; ++plane) {
    for (int32_t i = 0; i < dim; ++i) {  // Box and Muller
      const auto bits = philox4x32({static_cast<uint32_t>(i), static_cast<uint32_t>(plane), 0, 0}, {kSeed, seed});
      components_.push_back(static_cast<float>(std::sqrt(-2.0 * std::log(uniform(bits[0]))) *
                                               std::cos(2.0 * std::numbers::pi * uniform(bits[1]))));
    }
  }
  rows_.reserve(static_cast<size_t>(num_planes));
  for (int32_t i = 0; i < num_planes; ++i) rows_.push_back(plane(i));
}

void HashPlanes::project(const float* x, int32_t num_rows, float* out) const {
  cpu::dot_rows(x, num_rows, dim_, rows_.data(), num_planes_, DType::f32, out, num_planes_);
}

}  // namespace rarefy
