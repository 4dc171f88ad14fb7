// The forward pass of a decoder: one function over ModelConfig and Weights, the same for every family.
#pragma once

#include <cstdint>
#include <span>

#include "model/forward_scratch.h"
#include "model/weights.h"
#include "rarefy/model/model.h"

namespace rarefy::model {

// Pre: 0 <= tokens < vocab_size, tokens not empty, first_position >= 0.
Status forward(const ModelConfig& config, const Weights& weights, std::span<const int32_t> tokens, int64_t first_position,
               AttentionSink& attention, ForwardScratch::Impl& scratch, LogitRows rows,
               float* logits);  // [rows, vocab_size] f32; nullable when rows is none

}  // namespace rarefy::model
