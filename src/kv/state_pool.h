// StatePool: blocks of memory for the states of all recurrent layers of one sequence. A block is given back when its last
// holder lets go of it and is used again: a decode step takes one and gives one back. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/aligned_buffer.h"

namespace rarefy {

// [num_recurrent_layers, state_floats] f32; 64-byte aligned. Must not outlive its pool.
using StateBlock = std::shared_ptr<float>;

class StatePool {
 public:
  explicit StatePool(int64_t block_floats) : block_bytes_(static_cast<std::size_t>(block_floats) * sizeof(float)) {}

  // Contents are arbitrary. Null when memory is exhausted.
  StateBlock take();

 private:
  void give_back(AlignedBuffer buffer);

  std::size_t block_bytes_;
  std::mutex mutex_;
  std::vector<AlignedBuffer> free_;
};

}  // namespace rarefy
