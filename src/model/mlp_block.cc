// The gated MLP: down(act(gate x) * up x).
#include "cpu/elementwise/elementwise.h"
#include "model/blocks.h"

namespace rarefy::model {

Status run_mlp(const BlockContext& context, const LayerWeights& weights) {
  ForwardScratch::Impl& scratch = context.scratch;
  const int64_t num_tokens = context.num_tokens, intermediate = context.config.intermediate_size;
  RAREFY_RETURN_IF_ERROR(weights.gate_up.run(scratch.normed, num_tokens, scratch.matmul, scratch.wide));
  switch (context.config.blocks.activation) {
    case Activation::silu: cpu::silu_mul(scratch.wide, num_tokens, intermediate, scratch.mixed); break;
    case Activation::gelu_tanh: cpu::gelu_tanh_mul(scratch.wide, num_tokens, intermediate, scratch.mixed); break;
  }
  return weights.down.run(scratch.mixed, num_tokens, scratch.matmul, scratch.normed);
}

}  // namespace rarefy::model
