// Weights: the layers of a decoder, ready to multiply, read from a checkpoint by name and checked against the configuration.
// Immutable after load(); thread-safe.
#pragma once

#include <variant>
#include <vector>

#include "cpu/matmul/matmul.h"
#include "model/checkpoint.h"
#include "rarefy/core/status.h"
#include "rarefy/model/config.h"

namespace rarefy::model {

// Of full and sliding attention. `q` rows of a head are followed by its gate's with blocks.output_gate.
struct AttentionWeights {
  cpu::Matmul qkv;            // [q_rows + 2 num_kv_heads * head_dim, hidden_size]; q, k, v one under the other
  cpu::Matmul output;         // [hidden_size, num_q_heads * head_dim]
  std::vector<float> q_norm;  // [head_dim] f32; empty without blocks.query_key_norm
  std::vector<float> k_norm;  // [head_dim] f32; likewise
};

// Of linear attention (gated DeltaNet).
struct DeltaNetWeights {
  cpu::Matmul in;              // [conv_width + value_width + 2 num_value_heads, hidden_size]; qkv, z, b, a
  std::vector<float> conv;     // [conv_kernel, conv_width] f32; the current token last
  std::vector<float> decay;    // [num_value_heads] f32; -exp(A_log)
  std::vector<float> dt_bias;  // [num_value_heads] f32
  std::vector<float> norm;     // [value_head_dim] f32
  cpu::Matmul output;          // [hidden_size, value_width]
};

// Norm weights are what the normalised values are multiplied by: 1 has been added where the family says so.
struct LayerWeights {
  std::vector<float> mixer_norm;  // [hidden_size] f32
  std::variant<AttentionWeights, DeltaNetWeights> mixer;
  std::vector<float> post_mixer_norm;  // [hidden_size] f32; empty without blocks.sandwich_norms
  std::vector<float> mlp_norm;         // [hidden_size] f32
  cpu::Matmul gate_up;                 // [2 * intermediate_size, hidden_size]; gate, then up
  cpu::Matmul down;                    // [hidden_size, intermediate_size]
  std::vector<float> post_mlp_norm;    // [hidden_size] f32; empty without blocks.sandwich_norms
};

struct Weights {
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;  // [hidden_size] f32
  cpu::Matmul head;               // [vocab_size, hidden_size]
  cpu::Matmul embedding;          // [vocab_size, hidden_size]; empty when the head serves as the embedding
  float embedding_scale = 1.0f;   // multiplies rows of the embedding

  const cpu::Matmul& embedding_table() const { return embedding.out_dim() > 0 ? embedding : head; }
  // Read by one decode step: everything but an embedding table of its own.
  int64_t bytes_per_step() const;

  // `weight_dtype` is f32 or bf16.
  static Expected<Weights> load(const Checkpoint& checkpoint, const ModelConfig& config, DType weight_dtype);
};

// Type of the embedding, which stands for the checkpoint's.
Expected<DType> checkpoint_dtype(const Checkpoint& checkpoint);

}  // namespace rarefy::model
