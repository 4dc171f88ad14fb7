// Random planes for selectors that hash keys by signs of projections: normal components from the counter-based generator, the
// same for all layers and heads. Immutable; thread-safe.
#pragma once

#include <cstdint>
#include <vector>

namespace rarefy {

class HashPlanes {
 public:
  // `seed` is part of an index format: other planes give other codes.
  HashPlanes(int32_t num_planes, int32_t dim, uint32_t seed);

  int32_t num_planes() const { return num_planes_; }
  int32_t dim() const { return dim_; }
  const float* plane(int32_t i) const { return components_.data() + int64_t{i} * dim_; }  // [dim] f32
  // Projections of some vectors on all planes, in f32.
  void project(const float* x,  // [num_rows, dim] f32
               int32_t num_rows,
               float* out) const;  // [num_rows, num_planes] f32

 private:
  int32_t num_planes_, dim_;
  std::vector<float> components_;  // [num_planes, dim] f32
  std::vector<const void*> rows_;  // [num_planes] pointers to [dim] f32
};

}  // namespace rarefy
