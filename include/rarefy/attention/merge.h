// Merging partial attention results: (out, lse) pairs of disjoint sets of tokens combine into the pair of their union,
// across splits, devices and hosts. Parts are combined in the order given, in f64, so the same parts give the same bits.
// A part with lse = -inf (nothing attended to) contributes nothing; only such parts give out = 0, lse = -inf.
#pragma once

#include <cstdint>

#include "rarefy/core/status.h"

namespace rarefy {

struct MergeArgs {
  int32_t num_parts = 0;
  int64_t num_rows = 0;
  int32_t head_dim = 0;
  const float* part_out = nullptr;  // [num_parts, num_rows, head_dim] f32
  const float* part_lse = nullptr;  // [num_parts, num_rows] f32; natural log
  float* out = nullptr;             // [num_rows, head_dim] f32; may be the first part
  float* lse = nullptr;             // [num_rows] f32; nullable; may be the first part's
};

Status merge(const MergeArgs& args);

}  // namespace rarefy
