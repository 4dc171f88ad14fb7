// The blocks a decoder layer is made of. Each reads scratch.normed, [num_tokens, hidden_size], and leaves there what is to be
// added to the residual stream. A further family that needs a block which is not here adds one file and one line of the
// dispatch in forward.cc.
#pragma once

#include "model/forward_scratch.h"
#include "model/weights.h"
#include "rarefy/core/status.h"
#include "rarefy/model/model.h"

namespace rarefy::model {

// What all blocks of one forward pass share.
struct BlockContext {
  const ModelConfig& config;
  int32_t layer = 0;
  int64_t num_tokens = 0;
  int64_t first_position = 0;
  AttentionSink& sink;
  ForwardScratch::Impl& scratch;
};

// cos and sin at the positions of the pass, for every set of rope settings in use.
void fill_rotations(const ModelConfig& config, int64_t first_position, int64_t num_tokens, ForwardScratch::Impl& scratch);

Status run_mixer(const BlockContext& context, const AttentionWeights& weights);
Status run_mixer(const BlockContext& context, const DeltaNetWeights& weights);
Status run_mlp(const BlockContext& context, const LayerWeights& weights);

}  // namespace rarefy::model
