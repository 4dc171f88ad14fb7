// GuardedBuffer: elements between two guard bands, all bytes 0xff at first: NaN in f32, f16 and bf16, -1 in i32. What a
// kernel must not read stays NaN and shows in its output; what it must not write shows in intact().
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>

namespace rarefy::test {

template <typename T>
class GuardedBuffer {
 public:
  GuardedBuffer() = default;
  // `misalign` elements off a 64-byte boundary.
  explicit GuardedBuffer(std::size_t count, std::size_t misalign = 0)
      : count_(count), front_(kGuardBytes + misalign * sizeof(T)) {
    total_ = (front_ + count * sizeof(T) + kGuardBytes + 63) / 64 * 64;
    bytes_.reset(static_cast<unsigned char*>(std::aligned_alloc(64, total_)));
    std::fill_n(bytes_.get(), total_, kPoison);
  }

  T* data() { return reinterpret_cast<T*>(bytes_.get() + front_); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.get() + front_); }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t i) { return data()[i]; }
  const T& operator[](std::size_t i) const { return data()[i]; }

  void poison() { std::fill_n(bytes_.get() + front_, count_ * sizeof(T), kPoison); }
  bool intact() const {
    const unsigned char* begin = bytes_.get();
    const auto good = [](unsigned char byte) { return byte == kPoison; };
    return std::all_of(begin, begin + front_, good) &&
           std::all_of(begin + front_ + count_ * sizeof(T), begin + total_, good);
  }

 private:
  static constexpr unsigned char kPoison = 0xff;
  static constexpr std::size_t kGuardBytes = 256;
  struct Free {
    void operator()(unsigned char* pointer) const { std::free(pointer); }
  };
  std::size_t count_ = 0, front_ = 0, total_ = 0;
  std::unique_ptr<unsigned char[], Free> bytes_;  // [total] bytes
};

}  // namespace rarefy::test
