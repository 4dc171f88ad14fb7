#include "kv/state_pool.h"

#include <utility>

namespace rarefy {

StateBlock StatePool::take() {
  AlignedBuffer buffer;
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      buffer = std::move(free_.back());
      free_.pop_back();
    }
  }
  auto* data = reinterpret_cast<float*>(buffer.reserve(block_bytes_));
  if (data == nullptr) return nullptr;
  auto shared = std::make_shared<AlignedBuffer>(std::move(buffer));
  return {data, [this, shared](float*) { give_back(std::move(*shared)); }};
}

void StatePool::give_back(AlignedBuffer buffer) {
  constexpr std::size_t kMaxFree = 8;
  const std::lock_guard lock(mutex_);
  if (free_.size() < kMaxFree) free_.push_back(std::move(buffer));
}

}  // namespace rarefy
