// Resolves the rotary-embedding settings of a config.json, of either generation, to one inverse frequency per pair of
// components and an attention factor. Types: default, linear, llama3, yarn.
#pragma once

#include "model/json_file.h"
#include "rarefy/core/status.h"
#include "rarefy/model/config.h"

namespace rarefy::model {

// `config` is the decoder's object. Pre: head_dim is even and positive, max_position_embeddings positive.
Expected<RopeConfig> read_rope_config(const Json& config, int32_t head_dim, int32_t max_position_embeddings);

}  // namespace rarefy::model
