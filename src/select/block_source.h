// BlockSource: the blocks of one KV head of one sequence, as score() wants them: pointers to entries and keys.
// Non-owning; valid as long as the sequence's view.
#pragma once

#include <array>

#include "rarefy/kv/kv_cache.h"
#include "rarefy/select/selector.h"

namespace rarefy {

inline constexpr int32_t kMaxRunBlocks = 512;

// Pointers of one run of blocks.
struct BlockPointers {
  std::array<const std::byte*, kMaxRunBlocks> entries;  // [num_blocks] pointers to [block_bytes] bytes
  std::array<const void*, kMaxRunBlocks> keys;          // [num_blocks] pointers to [block_tokens, head_dim] kv_dtype
};

class BlockSource {
 public:
  // `index` is -1 for a selector without entries.
  BlockSource(const KvSequence& sequence, int32_t index, int32_t block_tokens, HeadId head)
      : sequence_(&sequence), view_(sequence.view(head.layer)), index_(index), block_tokens_(block_tokens), head_(head) {}

  HeadId head() const { return head_; }
  int32_t kv_len() const { return view_.kv_lens[0]; }
  int32_t block_tokens() const { return block_tokens_; }
  int32_t num_blocks() const { return (kv_len() + block_tokens_ - 1) / block_tokens_; }

  // Blocks first, first + stride, ... and num_ahead more; Pre: num_blocks + num_ahead <= kMaxRunBlocks.
  ScoreBlocks blocks(int32_t first, int32_t stride, int32_t num_blocks, int32_t num_ahead, BlockPointers& pointers) const {
    const auto* keys = static_cast<const std::byte*>(view_.keys);
    const auto element_bytes = static_cast<int64_t>(size_of(view_.dtype));
    for (int32_t i = 0; i < num_blocks + num_ahead; ++i) {
      const int32_t block = first + i * stride;
      pointers.keys[i] = keys + element_bytes * view_.row_offset(0, block * block_tokens_, head_.kv_head);
      pointers.entries[i] = index_ < 0 ? nullptr : sequence_->index_entry(index_, head_.layer, head_.kv_head, block);
    }
    return {head_, num_blocks, num_ahead, pointers.entries.data(), pointers.keys.data(), view_.token_stride};
  }

 private:
  const KvSequence* sequence_;
  PagedKvView view_;
  int32_t index_;
  int32_t block_tokens_;
  HeadId head_;
};

}  // namespace rarefy
