// AlignedBuffer: memory aligned to a cache line that grows when asked and never shrinks, so that a caller which repeats a
// shape allocates once. Its content is lost when it grows. Move-only; belongs to one thread at a time.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace rarefy::cpu {

class AlignedBuffer {
 public:
  static constexpr std::size_t kAlignmentBytes = 64;

  // At least `bytes` bytes, or null when the system has none left.
  void* reserve(std::size_t bytes) {
    if (bytes <= capacity_bytes_) return data_.get();
    if (bytes > static_cast<std::size_t>(-1) / 2) return nullptr;
    const std::size_t rounded = (bytes + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
    data_.reset();
    capacity_bytes_ = 0;
    data_.reset(std::aligned_alloc(kAlignmentBytes, rounded));
    if (data_ != nullptr) capacity_bytes_ = rounded;
    return data_.get();
  }
  template <typename T>
  T* reserve_elements(std::size_t count) {
    if (count > static_cast<std::size_t>(-1) / 2 / sizeof(T)) return nullptr;
    return static_cast<T*>(reserve(count * sizeof(T)));
  }

  void* data() { return data_.get(); }
  const void* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(void* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<void, Free> data_;  // [capacity_bytes_] bytes; 64-byte aligned
  std::size_t capacity_bytes_ = 0;
};

}  // namespace rarefy::cpu
