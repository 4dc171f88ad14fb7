#include "rarefy/attention/merge.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "attention/checks.h"

namespace rarefy {
namespace {

constexpr int32_t kMaxHeadDim = 256;

}  // namespace

Status merge(const MergeArgs& args) {
  if (args.num_parts < 1 || args.num_rows < 0 || args.head_dim < 1 || args.head_dim > kMaxHeadDim) {
    return Status::invalid_argument("merge: expected num_parts >= 1, num_rows >= 0 and head_dim 1 to 256, got num_parts=" +
                                    std::to_string(args.num_parts) + " num_rows=" + std::to_string(args.num_rows) +
                                    " head_dim=" + std::to_string(args.head_dim));
  }
  RAREFY_RETURN_IF_ERROR(check_pointer("merge: part_out", args.part_out, alignof(float)));
  RAREFY_RETURN_IF_ERROR(check_pointer("merge: part_lse", args.part_lse, alignof(float)));
  RAREFY_RETURN_IF_ERROR(check_pointer("merge: out", args.out, alignof(float)));
  for (int64_t row = 0; row < args.num_rows; ++row) {
    double maximum = -std::numeric_limits<double>::infinity();
    for (int32_t part = 0; part < args.num_parts; ++part) {
      maximum = std::max<double>(maximum, args.part_lse[part * args.num_rows + row]);
    }
    std::array<double, kMaxHeadDim> sum{};
    double denominator = 0.0;
    for (int32_t part = 0; part < args.num_parts; ++part) {
      const double lse = args.part_lse[part * args.num_rows + row];
      if (lse == -std::numeric_limits<double>::infinity()) continue;
      const double weight = std::exp(lse - maximum);
      const float* out = args.part_out + (part * args.num_rows + row) * args.head_dim;  // [head_dim] f32
      denominator += weight;
      for (int32_t d = 0; d < args.head_dim; ++d) sum[static_cast<size_t>(d)] += weight * out[d];
    }
    float* out = args.out + row * args.head_dim;  // [head_dim] f32
    for (int32_t d = 0; d < args.head_dim; ++d) {
      out[d] = denominator == 0.0 ? 0.0f : static_cast<float>(sum[static_cast<size_t>(d)] / denominator);
    }
    if (args.lse != nullptr)
      args.lse[row] = static_cast<float>(denominator == 0.0 ? maximum : maximum + std::log(denominator));
  }
  return {};
}

}  // namespace rarefy
