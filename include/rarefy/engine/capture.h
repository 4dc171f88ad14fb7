// Capture: queries, keys and values of real decoding in one safetensors file, for replay and calibration without the model.
//
//   tokens            // [kv_len] i32
//   positions         // [num_steps] i32; of the query of each step, ascending; a step sees the tokens up to its own position
//   layers.N.queries  // [num_steps, num_q_heads, head_dim] f32; after RoPE, unscaled
//   layers.N.keys     // [kv_len, num_kv_heads, head_dim] kv_dtype; after RoPE
//   layers.N.values   // [kv_len, num_kv_heads, head_dim] kv_dtype
//
// and CaptureInfo as strings in __metadata__. Files that other programs wrote in this form are read as well: whatever is in
// them is checked first. A Capture is immutable, shares its file (mapped) with its copies, and may be read from several threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "rarefy/core/dtype.h"
#include "rarefy/core/status.h"
#include "rarefy/model/config.h"

namespace rarefy {

struct CaptureInfo {
  std::string model_type;  // the family: "llama"
  int32_t num_layers = 0;  // of the model; those in the file are in `layers`
  int32_t num_q_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  DType kv_dtype = DType::bf16;  // f32, f16 or bf16
  float attention_scale = 0.0f;
  float logit_soft_cap = 0.0f;  // 0 = none
  std::vector<int32_t> layers;  // [num_captured] i32; ascending
  int32_t kv_len = 0;
  int32_t num_steps = 0;
  std::map<std::string, std::string> origin;  // model, checkpoint, source, policy, device, commit, command, date, ...

  // Of one model; layers, kv_len, num_steps and origin are up to the caller.
  static CaptureInfo of_model(const ModelConfig& config, DType kv_dtype);
  // Refuses a capture of a model with another shape, naming the first field that differs.
  Status check_model(const ModelConfig& config) const;
};

// The first bytes of a capture. The tensors follow: tokens, positions, and queries, keys and values of each layer.
Expected<std::string> capture_header(const CaptureInfo& info);

class Capture {
 public:
  // Refuses files that are damaged, incomplete, of other shapes than they say, or that hold NaN or infinities.
  static Expected<Capture> load(const std::filesystem::path& path);

  const CaptureInfo& info() const;
  std::span<const int32_t> tokens() const;     // [kv_len] i32
  std::span<const int32_t> positions() const;  // [num_steps] i32

  // `slot` counts info().layers.
  void read_queries(int32_t slot, int32_t step,
                    float* q) const;  // [num_q_heads, head_dim] f32
  void read_keys(int32_t slot, int32_t first_token, int32_t num_tokens,
                 float* rows) const;  // [num_tokens, num_kv_heads, head_dim] f32
  void read_values(int32_t slot, int32_t first_token, int32_t num_tokens,
                   float* rows) const;  // [num_tokens, num_kv_heads, head_dim] f32

 private:
  struct Contents;
  explicit Capture(std::shared_ptr<const Contents> contents) : contents_(std::move(contents)) {}
  std::shared_ptr<const Contents> contents_;
};

}  // namespace rarefy
