// The part of ListBuilder that the bounded mode needs.
#include <algorithm>
#include <cmath>

#include "select/list_builder.h"

namespace rarefy {

void ListBuilder::bound_outside(const int32_t* token_ids, int32_t count, const float* lse, OutsideBound* outside) {
  prepare();  // other lists have used the scratch memory since
  const int32_t block_tokens = source_->block_tokens(), num_blocks = source_->num_blocks(), kv_len = source_->kv_len();
  const int32_t run = std::clamp(512 / block_tokens, 1, kMaxRunBlocks);
  const int64_t stride = int64_t{run} * block_tokens;
  std::vector<float> bounds(static_cast<size_t>(problem_.group * stride));  // [group, stride] f32
  std::vector<float> norms(static_cast<size_t>(run));                       // [run] f32
  std::fill_n(outside, problem_.group, OutsideBound{});
  BlockPointers pointers;
  int32_t next = 0;  // of the list
  for (int32_t first = 0; first < num_blocks; first += run) {
    const int32_t blocks_here = std::min(run, num_blocks - first);
    ScoreBlocks blocks = source_->blocks(first, 1, blocks_here, 0, pointers);
    add_survey(blocks, first, 1);
    problem_.selector->bound(scratch_->state.data(), blocks, bounds.data(), stride);
    problem_.selector->value_bounds(blocks, norms.data());
    const int32_t first_token = first * block_tokens, end_token = std::min(kv_len, (first + blocks_here) * block_tokens);
    for (int32_t token = first_token; token < end_token; ++token) {
      if (next < count && token_ids[next] == token) {
        ++next;
        continue;
      }
      const double value = norms[static_cast<size_t>((token - first_token) / block_tokens)];
      for (int32_t query = 0; query < problem_.group; ++query) {
        // A bound of +infinity or NaN leaves nothing bounded.
        const double mass =
            std::exp(double{bounds[static_cast<size_t>(query * stride + token - first_token)]} - lse[query]);
        outside[query].mass += mass;
        outside[query].value_mass += mass * value;
        outside[query].largest_value = std::max(outside[query].largest_value, value);
      }
    }
  }
}

}  // namespace rarefy
