// k-means with a fixed start, for codebooks: the same points give the same centroids. Thread-safe.
#pragma once

#include <cstdint>
#include <string_view>

#include "rarefy/select/selector.h"

namespace rarefy {

// Squared Euclidean distance, at most ten rounds, in f32 with means in double. Starts from `num_centroids` different points
// chosen by `seed`; a centroid that no point is nearest to moves to the point farthest from its own. Pre: num_points >= num_centroids.
void k_means(const float* points,  // [num_points, dim] f32
             int32_t num_points, int32_t dim, int32_t num_centroids, uint32_t seed,
             float* centroids,    // [dim, num_centroids] f32
             float* half_norms);  // [num_centroids] f32; |c|^2 / 2

// Refuses keys that nothing can be learned from.
Status check_finite(const float* keys,  // [count] f32
                    int64_t count, std::string_view selector, HeadId head);

}  // namespace rarefy
