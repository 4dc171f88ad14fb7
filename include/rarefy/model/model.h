// Model: the weights of a checkpoint and its forward pass. Attention is not in here: forward() hands queries, keys and values
// of each layer to an AttentionSink, which owns the cache and decides what is attended to.
//
// A Model is immutable after loading and may be used from several threads; each concurrent forward needs its own ForwardScratch.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

#include "rarefy/core/status.h"
#include "rarefy/model/config.h"
#include "rarefy/model/tokenizer.h"

namespace rarefy {

// The state of a linear-attention layer (LinearAttentionConfig::state_floats says what it is). The two may be the same memory.
struct LayerState {
  const float* before = nullptr;  // [state_floats] f32; before these tokens; null = zeros, at the start of a sequence
  float* after = nullptr;         // [state_floats] f32; to be filled with the state after them
};

// Receives one layer's projections for `num_tokens` consecutive positions, after bias, norms and RoPE, and keeps the states of
// linear-attention layers.
class AttentionSink {
 public:
  virtual ~AttentionSink() = default;
  virtual Status attend(int32_t layer, int32_t num_tokens,
                        const float* q,   // [num_tokens, num_q_heads, head_dim] f32
                        const float* k,   // [num_tokens, num_kv_heads, head_dim] f32
                        const float* v,   // [num_tokens, num_kv_heads, head_dim] f32
                        float* out) = 0;  // [num_tokens, num_q_heads, head_dim] f32
  // Of a linear-attention layer; valid until the end of the forward pass.
  virtual Expected<LayerState> state(int32_t layer) = 0;
};

enum class ComputeType : int32_t {
  automatic = 0,  // bf16 weights where the CPU multiplies them fast (AVX-512), else f32
  f32 = 1,        // weights widened to f32 at load
  bf16 = 2,       // weights kept in (or rounded to) bf16; f32 accumulation
};

struct ModelOptions {
  ComputeType compute = ComputeType::automatic;
};

class ForwardScratch {
 public:
  ForwardScratch();
  ForwardScratch(ForwardScratch&&) noexcept;
  ForwardScratch& operator=(ForwardScratch&&) noexcept;
  ~ForwardScratch();
  class Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// Which of the tokens of a forward call get logits.
enum class LogitRows : int32_t { none = 0, last = 1, all = 2 };

class Model {
 public:
  static Expected<Model> load(const std::filesystem::path& folder, const ModelOptions& options = {});

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const ModelConfig& config() const;
  const Tokenizer& tokenizer() const;
  std::string_view compute_name() const;  // "bf16 weights, f32 accumulation" or "f32"
  int64_t weight_bytes() const;           // as held in memory; read once per decode step

  // Runs `tokens` at positions first_position, first_position + 1, ... Ids at or past the tokenizer's vocabulary get -inf.
  // Pre: all ids are in [0, vocab_size).
  Status forward(std::span<const int32_t> tokens, int64_t first_position, AttentionSink& attention, ForwardScratch& scratch,
                 LogitRows rows,
                 float* logits) const;  // [rows, vocab_size] f32; nullable when rows is none

  class Impl;
  explicit Model(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace rarefy
