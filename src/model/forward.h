// The forward pass of a decoder: one function over ModelConfig and Weights, the same for every family.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/aligned_buffer.h"
#include "cpu/matmul/matmul.h"
#include "model/weights.h"
#include "rarefy/model/model.h"

namespace rarefy {

// Buffers of one forward pass, grown to the largest number of tokens seen.
class ForwardScratch::Impl {
 public:
  Status reserve(const ModelConfig& config, int64_t num_tokens);

  float* hidden = nullptr;     // [num_tokens, hidden_size] f32; the residual stream
  float* normed = nullptr;     // [num_tokens, hidden_size] f32; also what is added to the residual stream
  float* wide = nullptr;       // [num_tokens, max((num_q_heads + 2 num_kv_heads) * head_dim, 2 * intermediate_size)] f32
  float* q = nullptr;          // [num_tokens, num_q_heads, head_dim] f32
  float* k = nullptr;          // [num_tokens, num_kv_heads, head_dim] f32
  float* v = nullptr;          // [num_tokens, num_kv_heads, head_dim] f32
  float* attention = nullptr;  // [num_tokens, num_q_heads, head_dim] f32
  float* activated = nullptr;  // [num_tokens, intermediate_size] f32
  float* cos = nullptr;        // [num_tokens, rotary_dim / 2] f32
  float* sin = nullptr;        // [num_tokens, rotary_dim / 2] f32
  cpu::MatmulScratch matmul;

  // For tests: called with the residual stream after the embedding (layer -1) and after each layer.
  std::function<void(int32_t layer, int64_t num_tokens, const float* hidden)>
      observer;  // hidden: [num_tokens, hidden_size] f32

 private:
  AlignedBuffer storage_;  // all of the above
};

namespace model {

// Pre: 0 <= tokens < vocab_size, tokens not empty, first_position >= 0.
Status forward(const ModelConfig& config, const Weights& weights, std::span<const int32_t> tokens, int64_t first_position,
               AttentionSink& attention, ForwardScratch::Impl& scratch, LogitRows rows,
               float* logits);  // [rows, vocab_size] f32; nullable when rows is none

}  // namespace model
}  // namespace rarefy
