#include "model/forward_scratch.h"

#include <algorithm>
#include <string>

namespace rarefy {

Status ForwardScratch::Impl::reserve(const ModelConfig& config, int64_t num_tokens) {
  struct Part {
    float** pointer;
    int64_t width;
  };
  const int64_t q_width = int64_t{config.num_q_heads} * config.head_dim;
  const int64_t kv_width = int64_t{config.num_kv_heads} * config.head_dim;
  const int64_t qkv_width = (config.blocks.output_gate ? 2 : 1) * q_width + 2 * kv_width;
  const LinearAttentionConfig& linear = config.linear;
  const int64_t linear_width = linear.conv_width() + linear.value_width() + 2 * linear.num_value_heads;
  const int64_t intermediate = config.intermediate_size;
  const int64_t half = config.rope.rotary_dim / 2, local_half = config.local_rope.rotary_dim / 2;
  const Part parts[] = {{&hidden, config.hidden_size},
                        {&normed, config.hidden_size},
                        {&wide, std::max({qkv_width, linear_width, 2 * intermediate})},
                        {&q, q_width},
                        {&k, kv_width},
                        {&v, kv_width},
                        {&mixed, std::max({q_width, linear.value_width(), intermediate})},
                        {&convolved, linear.conv_width()},
                        {&gates, int64_t{2} * linear.num_value_heads},
                        {&rotation.cos, half},
                        {&rotation.sin, half},
                        {&local_rotation.cos, local_half},
                        {&local_rotation.sin, local_half}};
  constexpr int64_t kLine = AlignedBuffer::kAlignmentBytes / sizeof(float);
  const auto rounded = [&](const Part& part) { return (part.width * num_tokens + kLine - 1) / kLine * kLine; };
  int64_t total = 0;
  for (const Part& part : parts) total += rounded(part);
  auto* next = storage_.reserve_elements<float>(static_cast<std::size_t>(total));
  if (next == nullptr) {
    return Status::resource_exhausted("out of memory for the activations of " + std::to_string(num_tokens) +
                                      " tokens; pass fewer tokens at a time");
  }
  for (const Part& part : parts) {
    *part.pointer = next;
    next += rounded(part);
  }
  return {};
}

}  // namespace rarefy
