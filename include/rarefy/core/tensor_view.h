// TensorView: a non-owning view of a strided tensor of up to five dimensions. Strides count elements. Copying a view is
// cheap and shares the data; whoever owns the data keeps it alive.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>

#include "rarefy/core/dtype.h"

namespace rarefy {

inline constexpr int32_t kMaxTensorRank = 5;

struct TensorView {
  void* data = nullptr;  // [shape...] dtype; strides in elements
  DType dtype = DType::f32;
  int32_t rank = 0;
  std::array<int64_t, kMaxTensorRank> shape{};
  std::array<int64_t, kMaxTensorRank> strides{};

  // Row-major view of data [shape...] dtype; at most kMaxTensorRank dimensions.
  static TensorView contiguous(void* data, DType dtype, std::initializer_list<int64_t> shape);

  int64_t num_elements() const;
  bool is_contiguous() const;
  // Element offset of a coordinate; missing trailing coordinates are 0.
  int64_t offset(std::initializer_list<int64_t> coordinates) const;
  // Address of an element.
  void* at(std::initializer_list<int64_t> coordinates) const;
  std::string to_string() const;  // "bf16[2, 8, 128]"
};

}  // namespace rarefy
