// BlockSource: the blocks of one KV head of one sequence, as score() wants them: pointers to entries and keys.
// Non-owning; valid as long as the sequence's view.
#pragma once

#include <array>
#include <bit>

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
  // `index` is -1 for a selector without entries. Pre: block_tokens divides the page size.
  BlockSource(const KvSequence& sequence, int32_t index, int32_t block_tokens, HeadId head)
      : view_(sequence.view(head.layer)), block_tokens_(block_tokens), head_(head) {
    if (index >= 0) index_ = sequence.index_view(index, head.layer);
    page_shift_ = std::countr_zero(static_cast<uint32_t>(view_.page_size / block_tokens));
  }

  HeadId head() const { return head_; }
  int32_t kv_len() const { return view_.kv_lens[0]; }
  int32_t block_tokens() const { return block_tokens_; }
  int32_t num_blocks() const { return (kv_len() + block_tokens_ - 1) / block_tokens_; }

  // Blocks first, first + stride, ... and num_ahead more; Pre: num_blocks + num_ahead <= kMaxRunBlocks.
  ScoreBlocks blocks(int32_t first, int32_t stride, int32_t num_blocks, int32_t num_ahead, BlockPointers& pointers) const {
    const auto element_bytes = static_cast<int64_t>(size_of(view_.dtype));
    const auto* keys = static_cast<const std::byte*>(view_.keys) + head_.kv_head * view_.head_stride * element_bytes;
    const std::byte* entries =
        index_.entries == nullptr ? nullptr : index_.entries + head_.kv_head * index_.head_stride_bytes;
    const int64_t page_bytes = view_.page_stride * element_bytes;
    const int64_t key_bytes = block_tokens_ * view_.token_stride * element_bytes;
    const int32_t in_page = (1 << page_shift_) - 1;
    for (int32_t i = 0, block = first; i < num_blocks + num_ahead; ++i, block += stride) {
      const int64_t page = view_.page_table[block >> page_shift_];
      pointers.keys[i] = keys + page * page_bytes + (block & in_page) * key_bytes;
      pointers.entries[i] = entries + page * index_.page_stride_bytes + (block & in_page) * index_.block_bytes;
    }
    return {head_, num_blocks, num_ahead, pointers.entries.data(), pointers.keys.data(), view_.token_stride, nullptr, 0};
  }

 private:
  PagedKvView view_;
  PagedIndexView index_;  // entries are null for a selector without
  int32_t block_tokens_;
  int32_t page_shift_ = 0;  // log2 of the blocks in a page
  HeadId head_;
};

}  // namespace rarefy
