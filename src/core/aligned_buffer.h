// AlignedBuffer: move-only bytes on a 64-byte boundary that grow and never shrink.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace rarefy {

class AlignedBuffer {
 public:
  // At least `bytes` bytes; contents are lost when it grows. Null when memory is exhausted.
  std::byte* reserve(std::size_t bytes) {
    if (bytes > capacity_) {
      capacity_ = (bytes + 63) / 64 * 64;
      data_.reset(static_cast<std::byte*>(std::aligned_alloc(64, capacity_)));
      if (data_ == nullptr) capacity_ = 0;
    }
    return data_.get();
  }
  std::byte* data() const { return data_.get(); }
  std::size_t capacity() const { return capacity_; }

 private:
  struct Free {
    void operator()(std::byte* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<std::byte[], Free> data_;  // [capacity] bytes; 64-byte aligned
  std::size_t capacity_ = 0;
};

}  // namespace rarefy
