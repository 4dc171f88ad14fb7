#include "rarefy/core/tensor_view.h"

namespace rarefy {

TensorView TensorView::contiguous(void* data, DType dtype, std::initializer_list<int64_t> shape) {
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  for (int64_t extent : shape) {
    if (view.rank == kMaxTensorRank) break;
    view.shape[view.rank++] = extent;
  }
  int64_t stride = 1;
  for (int32_t dim = view.rank - 1; dim >= 0; --dim) {
    view.strides[dim] = stride;
    stride *= view.shape[dim];
  }
  return view;
}

int64_t TensorView::num_elements() const {
  int64_t count = 1;
  for (int32_t dim = 0; dim < rank; ++dim) count *= shape[dim];
  return count;
}

bool TensorView::is_contiguous() const {
  int64_t stride = 1;
  for (int32_t dim = rank - 1; dim >= 0; --dim) {
    if (shape[dim] > 1 && strides[dim] != stride) return false;
    stride *= shape[dim];
  }
  return true;
}

int64_t TensorView::offset(std::initializer_list<int64_t> coordinates) const {
  int64_t result = 0;
  int32_t dim = 0;
  for (int64_t coordinate : coordinates) {
    if (dim == rank) break;
    result += coordinate * strides[dim++];
  }
  return result;
}

void* TensorView::at(std::initializer_list<int64_t> coordinates) const {
  return static_cast<std::byte*>(data) + offset(coordinates) * static_cast<int64_t>(size_of(dtype));
}

std::string TensorView::to_string() const {
  std::string text(rarefy::to_string(dtype));
  text += "[";
  for (int32_t dim = 0; dim < rank; ++dim) text += (dim > 0 ? ", " : "") + std::to_string(shape[dim]);
  return text + "]";
}

}  // namespace rarefy
