#include "ref/merge.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace rarefy::ref {
namespace {

constexpr int32_t kMaxHeadDim = 256;

}  // namespace

Status merge(const MergeProblem& problem, const MergeArgs& args, Stream) {
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
      const float* out = args.part_out + (part * args.num_rows + row) * problem.head_dim;  // [head_dim] f32
      denominator += weight;
      for (int32_t d = 0; d < problem.head_dim; ++d) sum[static_cast<size_t>(d)] += weight * out[d];
    }
    float* out = args.out + row * problem.head_dim;  // [head_dim] f32
    for (int32_t d = 0; d < problem.head_dim; ++d) {
      out[d] = denominator == 0.0 ? 0.0f : static_cast<float>(sum[static_cast<size_t>(d)] / denominator);
    }
    if (args.lse != nullptr)
      args.lse[row] = static_cast<float>(denominator == 0.0 ? maximum : maximum + std::log(denominator));
  }
  return {};
}

}  // namespace rarefy::ref
