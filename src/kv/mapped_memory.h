// MappedMemory: zeroed address space that costs memory only where it is touched. Move-only owner. The start is aligned to a
// memory page (4096 bytes).
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "rarefy/core/status.h"

namespace rarefy {

class MappedMemory {
 public:
  MappedMemory() = default;
  // Huge pages are asked for: a decode step streams through hundreds of megabytes, which 4 KiB pages make TLB-bound.
  static Expected<MappedMemory> reserve(int64_t bytes);
  MappedMemory(MappedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  MappedMemory& operator=(MappedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~MappedMemory();

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;  // [bytes] bytes
  int64_t bytes_ = 0;
};

}  // namespace rarefy
