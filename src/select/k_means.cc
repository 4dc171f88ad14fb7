#include "select/k_means.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "cpu/select/centroids.h"
#include "rarefy/core/rng.h"

namespace rarefy {
namespace {

constexpr int32_t kMaxRounds = 10;
constexpr uint32_t kSeed = 0x6b6d6e73;  // part of the index format

}  // namespace

void k_means(const float* points, int32_t num_points, int32_t dim, int32_t num_centroids, uint32_t seed, float* centroids,
             float* half_norms) {
  const auto point = [&](int32_t i) { return points + int64_t{i} * dim; };
  const auto set_centroid = [&](int32_t c, auto value) {
    double square = 0.0;
    for (int32_t d = 0; d < dim; ++d) {
      const auto x = static_cast<float>(value(d));
      centroids[int64_t{d} * num_centroids + c] = x;
      square += double{x} * double{x};
    }
    half_norms[c] = static_cast<float>(0.5 * square);
  };
  // A shuffle as far as it is needed.
  std::vector<int32_t> order(static_cast<size_t>(num_points));  // [num_points] i32
  std::iota(order.begin(), order.end(), 0);
  for (int32_t c = 0; c < num_centroids; ++c) {
    const uint32_t bits = philox4x32({static_cast<uint32_t>(c), 0, 0, 0}, {kSeed, seed})[0];
    const auto left = static_cast<uint32_t>(num_points - c);
    std::swap(order[static_cast<size_t>(c)], order[static_cast<size_t>(c) + bits % left]);
    set_centroid(c, [&](int32_t d) { return point(order[static_cast<size_t>(c)])[d]; });
  }

  std::vector<int32_t> nearest(static_cast<size_t>(num_points), -1);  // [num_points] i32
  std::vector<double> sums;                                           // [num_centroids, dim] f64
  std::vector<int32_t> counts;                                        // [num_centroids] i32
  for (int32_t round = 0; round < kMaxRounds; ++round) {
    bool changed = false;
    sums.assign(static_cast<size_t>(num_centroids) * dim, 0.0);
    counts.assign(static_cast<size_t>(num_centroids), 0);
    for (int32_t i = 0; i < num_points; ++i) {
      const int32_t c = cpu::nearest_centroid(point(i), dim, centroids, half_norms, num_centroids);
      changed = changed || c != nearest[static_cast<size_t>(i)];
      nearest[static_cast<size_t>(i)] = c;
      ++counts[static_cast<size_t>(c)];
      for (int32_t d = 0; d < dim; ++d) sums[static_cast<size_t>(c) * dim + d] += double{point(i)[d]};
    }
    if (!changed) return;
    std::vector<std::pair<double, int32_t>> farthest;  // distances to the own centroid, found when a centroid is empty
    for (int32_t c = 0; c < num_centroids; ++c) {
      const int32_t count = counts[static_cast<size_t>(c)];
      if (count > 0) {
        set_centroid(c, [&](int32_t d) { return sums[static_cast<size_t>(c) * dim + d] / count; });
        continue;
      }
      if (farthest.empty()) {
        for (int32_t i = 0; i < num_points; ++i) {
          double square = 0.0;
          for (int32_t d = 0; d < dim; ++d) {
            const double x = point(i)[d] - centroids[int64_t{d} * num_centroids + nearest[static_cast<size_t>(i)]];
            square += x * x;
          }
          farthest.emplace_back(square, i);
        }
        std::sort(farthest.begin(), farthest.end());
      }
      const int32_t chosen = farthest.back().second;
      farthest.pop_back();
      set_centroid(c, [&](int32_t d) { return point(chosen)[d]; });
    }
  }
}

Status check_finite(const float* keys, int64_t count, std::string_view selector, HeadId head) {
  if (std::all_of(keys, keys + count, [](float x) { return std::isfinite(x); })) return {};
  return Status::invalid_argument("selector: " + std::string(selector) +
                                  ": expected finite keys to train on, got NaN or Inf in layer " +
                                  std::to_string(head.layer) + ", KV head " + std::to_string(head.kv_head) +
                                  "; choose a selector that does not train, or find out why the model overflows");
}

}  // namespace rarefy
