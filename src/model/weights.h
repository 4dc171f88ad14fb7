// Weights: the layers of a decoder, ready to multiply, read from a checkpoint by name and checked against the configuration.
// Immutable after load(); thread-safe.
#pragma once

#include <vector>

#include "cpu/matmul/matmul.h"
#include "model/checkpoint.h"
#include "rarefy/core/status.h"
#include "rarefy/model/config.h"

namespace rarefy::model {

struct LayerWeights {
  std::vector<float> attention_norm;  // [hidden_size] f32
  cpu::Matmul qkv;              // [(num_q_heads + 2 num_kv_heads) * head_dim, hidden_size]; q, k, v one under the other
  cpu::Matmul output;           // [hidden_size, num_q_heads * head_dim]
  std::vector<float> mlp_norm;  // [hidden_size] f32
  cpu::Matmul gate_up;          // [2 * intermediate_size, hidden_size]; gate, then up
  cpu::Matmul down;             // [hidden_size, intermediate_size]
};

struct Weights {
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;  // [hidden_size] f32
  cpu::Matmul head;               // [vocab_size, hidden_size]
  cpu::Matmul embedding;          // [vocab_size, hidden_size]; empty when the head serves as the embedding

  const cpu::Matmul& embedding_table() const { return embedding.out_dim() > 0 ? embedding : head; }
  // Read by one decode step: everything but an embedding table of its own.
  int64_t bytes_per_step() const;

  // `weight_dtype` is f32 or bf16.
  static Expected<Weights> load(const Checkpoint& checkpoint, const ModelConfig& config, DType weight_dtype);
};

// Type of the embedding, which stands for the checkpoint's.
Expected<DType> checkpoint_dtype(const Checkpoint& checkpoint);

}  // namespace rarefy::model
