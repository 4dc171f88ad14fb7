// Merging partial attention results: (out, lse) pairs of disjoint sets of tokens combine into the pair of their union,
// across splits, devices and hosts. Parts are combined in a fixed order (on the CPU as given, in f64; on CUDA in f32, part p into one of
// up to eight sums), so the same parts give the same bits, alone and beside other rows.
// A part with lse = -inf (nothing attended to) contributes nothing; only such parts give out = 0, lse = -inf.
#pragma once

#include <cstdint>
#include <string_view>

#include "rarefy/core/device.h"
#include "rarefy/core/status.h"

namespace rarefy {

struct MergeProblem {
  int32_t head_dim = 0;  // 1..256
};

// Pointers are memory of the plan's device.
struct MergeArgs {
  int32_t num_parts = 0;
  int64_t num_rows = 0;
  const float* part_out = nullptr;  // [num_parts, num_rows, head_dim] f32
  const float* part_lse = nullptr;  // [num_parts, num_rows] f32; natural log
  float* out = nullptr;             // [num_rows, head_dim] f32; may be the first part
  float* lse = nullptr;             // [num_rows] f32; nullable; may be the first part's
};

using MergeFunction = Status (*)(const MergeProblem&, const MergeArgs&, Stream);

// Needs no workspace. Immutable; may be shared between threads.
class MergePlan {
 public:
  static Expected<MergePlan> make(Device device, const MergeProblem& problem);

  std::string_view implementation() const { return implementation_; }
  Status run(const MergeArgs& args, Stream stream = {}) const;

 private:
  MergePlan(const MergeProblem& problem, std::string_view implementation, MergeFunction function)
      : problem_(problem), implementation_(implementation), function_(function) {}
  MergeProblem problem_;
  std::string_view implementation_;
  MergeFunction function_;
};

}  // namespace rarefy
