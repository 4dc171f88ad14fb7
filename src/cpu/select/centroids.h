// Dot products of one vector with many centroids that are stored dimension by dimension, and the nearest of them. Used to train,
// to encode and to make lookup tables. The same bits on every instruction set. Thread-safe; nothing is kept; pointers need no
// alignment.
#pragma once

#include <cstdint>

namespace rarefy::cpu {

inline constexpr int32_t kMaxCentroids = 256;

// dots[c] = sum over d of x[d] * centroids[d][c], in f32.
void centroid_dots(const float* x,  // [dim] f32
                   int32_t dim,
                   const float* centroids,  // [dim, count] f32
                   int32_t count,
                   float* dots);  // [count] f32

// The centroid at the smallest Euclidean distance, the first of equals: that of the smallest |c|^2 / 2 - x . c. 0 for NaN.
int32_t nearest_centroid(const float* x,  // [dim] f32
                         int32_t dim,
                         const float* centroids,   // [dim, count] f32
                         const float* half_norms,  // [count] f32; |c|^2 / 2
                         int32_t count);           // at most kMaxCentroids

}  // namespace rarefy::cpu
