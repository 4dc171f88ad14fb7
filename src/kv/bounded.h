// Sizes of what is reserved, checked for overflow and for what no machine has.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

namespace rarefy {

// Address spaces end at 2^47 bytes on common machines; anything near that is a mistake.
inline constexpr int64_t kMaxCacheBytes = int64_t{1} << 46;

// Product of non-negative numbers, if it is at most kMaxCacheBytes.
inline std::optional<int64_t> bounded_product(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product) || product > kMaxCacheBytes) return std::nullopt;
  }
  return product;
}

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace rarefy
