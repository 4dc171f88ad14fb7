// A random Llama checkpoint in Hugging Face format, written to a temporary folder that goes away with the object. Weights are
// drawn so that attention is neither flat nor a single spike; the byte-level tokenizer has one token per byte.
#pragma once

#include <cstdint>
#include <filesystem>

namespace rarefy::testing {

struct TinyCheckpointOptions {
  int32_t hidden_size = 64;
  int32_t intermediate_size = 96;
  int32_t num_layers = 2;
  int32_t num_q_heads = 4;
  int32_t num_kv_heads = 1;
  int32_t head_dim = 64;
  int32_t max_position_embeddings = 8192;
  uint32_t seed = 1;
};

class TinyCheckpoint {
 public:
  explicit TinyCheckpoint(const TinyCheckpointOptions& options = {});
  ~TinyCheckpoint();
  TinyCheckpoint(const TinyCheckpoint&) = delete;
  TinyCheckpoint& operator=(const TinyCheckpoint&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  static constexpr int32_t kVocabSize = 258;  // 256 bytes, begin-of-text, end-of-text

 private:
  std::filesystem::path folder_;
};

}  // namespace rarefy::testing
