// The buffers of one forward pass, grown to the largest number of tokens seen.
#pragma once

#include <cstdint>
#include <functional>

#include "core/aligned_buffer.h"
#include "cpu/matmul/matmul.h"
#include "rarefy/model/model.h"

namespace rarefy {

// cos and sin of one set of rope settings at the positions of a forward pass.
struct Rotation {
  float* cos = nullptr;  // [num_tokens, rotary_dim / 2] f32
  float* sin = nullptr;  // [num_tokens, rotary_dim / 2] f32
};

class ForwardScratch::Impl {
 public:
  Status reserve(const ModelConfig& config, int64_t num_tokens);

  float* hidden = nullptr;     // [num_tokens, hidden_size] f32; the residual stream
  float* normed = nullptr;     // [num_tokens, hidden_size] f32; also what is added to the residual stream
  float* wide = nullptr;       // [num_tokens, widest product] f32; what a block's first product yields
  float* q = nullptr;          // [num_tokens, num_q_heads, head_dim] f32
  float* k = nullptr;          // [num_tokens, num_kv_heads, head_dim] f32
  float* v = nullptr;          // [num_tokens, num_kv_heads, head_dim] f32
  float* mixed = nullptr;      // [num_tokens, widest mixer output] f32; what a block's last product takes
  float* convolved = nullptr;  // [num_tokens, conv_width] f32; linear layers
  float* gates = nullptr;      // [2, num_tokens, num_value_heads] f32; linear layers: log decay, beta
  Rotation rotation;           // of full-attention layers
  Rotation local_rotation;     // of sliding layers
  cpu::MatmulScratch matmul;
  AlignedBuffer delta;  // what the delta rule asks for

  // For tests: called with the residual stream after the embedding (layer -1) and after each layer.
  std::function<void(int32_t layer, int64_t num_tokens, const float* hidden)>
      observer;  // hidden: [num_tokens, hidden_size] f32

 private:
  AlignedBuffer storage_;  // all of the above
};

}  // namespace rarefy
