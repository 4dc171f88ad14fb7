// AlignedBuffer: bytes aligned to a cache line that grow when asked and never shrink, so that a caller which repeats a shape
// allocates once. Contents are lost when it grows. Move-only; belongs to one thread at a time.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace rarefy {

class AlignedBuffer {
 public:
  static constexpr std::size_t kAlignmentBytes = 64;

  // At least `bytes` bytes, or null when the system has none left.
  std::byte* reserve(std::size_t bytes) {
    if (bytes <= capacity_) return data_.get();
    if (bytes > static_cast<std::size_t>(-1) / 2) return nullptr;
    const std::size_t rounded = (bytes + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
    data_.reset();  // the old memory can serve the new request
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignmentBytes, rounded)));
    capacity_ = data_ != nullptr ? rounded : 0;
    return data_.get();
  }
  // The same for `count` elements.
  template <typename T>
  T* reserve_elements(std::size_t count) {
    if (count > static_cast<std::size_t>(-1) / 2 / sizeof(T)) return nullptr;
    return reinterpret_cast<T*>(reserve(count * sizeof(T)));
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
