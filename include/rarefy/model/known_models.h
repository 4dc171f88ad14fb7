// The models that Rarefy is made for, by their sizes: shapes for benchmarks, and what weights and cache weigh before anything is
// downloaded. One table, src/model/known_models.cc; everything else follows from it by formula.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "rarefy/core/dtype.h"

namespace rarefy {

struct KnownModel {
  std::string_view id;      // on the Hugging Face hub
  std::string_view family;  // as ModelConfig::architecture
  int32_t num_layers = 0, hidden_size = 0, intermediate_size = 0;
  int32_t num_q_heads = 0, num_kv_heads = 0, head_dim = 0;
  int32_t vocab_size = 0, max_position_embeddings = 0;
  bool tied = false;  // one matrix embeds tokens and gives logits
  // Every so-manyth layer attends to the whole context; the others slide a window (Gemma 3) or keep a state (Qwen3.5).
  int32_t full_layer_interval = 1;
  int32_t sliding_window = 0;                                    // tokens
  int32_t num_linear_key_heads = 0, num_linear_value_heads = 0;  // of 128 components
  bool spare = false;                                            // not one of the twenty
  std::string_view doubt;  // what of this line has not been confirmed; empty = the sizes add up to the published total

  int32_t num_full_layers() const { return num_layers / full_layer_interval; }
  int32_t num_other_layers() const { return num_layers - num_full_layers(); }

  int64_t num_parameters() const;                                // of the text decoder; a tied matrix counts once
  int64_t weight_bytes() const { return 2 * num_parameters(); }  // in bf16
  // What a decode step reads of them: all but an embedding that does not give the logits as well.
  int64_t step_weight_bytes() const;
  // Keys and values of one token over the layers that attend to the whole context.
  int64_t kv_bytes_per_token(DType kv_dtype) const;
  // What a sequence holds besides, whatever its length: full windows in the cache's type, states in f32.
  int64_t fixed_bytes(DType kv_dtype) const;
  // The context at which keys and values have as many bytes as the weights.
  int64_t break_even_kv_len(DType kv_dtype) const { return weight_bytes() / kv_bytes_per_token(kv_dtype); }
};

std::span<const KnownModel> known_models();  // the twenty first, then spares
// By id, or by the part of it after the slash; case does not matter. Null when there is none.
const KnownModel* find_known_model(std::string_view name);

}  // namespace rarefy
