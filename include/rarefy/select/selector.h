// Selector: an index over keys and a score against it. This is all that a new selector implements; budgets, group scores,
// sampling, certificates, page sharing and audits are inherited.
//
// The index is a sequence of entries, one for every `block_tokens()` consecutive tokens of a KV head. encode() must be a pure
// function of the keys in the block: then pages can be shared, copied and rebuilt, and appending one token at a time gives
// the same bytes as building at once. score() estimates scale * q . k for every token of some blocks.
//
// A Selector is immutable after creation and used from several threads at once. Registration: select/registry.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "rarefy/core/dtype.h"
#include "rarefy/core/status.h"

namespace rarefy {

// Largest index block in tokens.
inline constexpr int32_t kMaxBlockTokens = 256;
// Largest number of query heads per KV head.
inline constexpr int32_t kMaxGroup = 16;

struct SelectorShape {
  int32_t num_layers = 0;
  int32_t num_kv_heads = 0;
  int32_t group = 1;  // query heads per KV head, 1..16
  int32_t head_dim = 0;
  DType kv_dtype = DType::bf16;
};

// Which head an entry belongs to, for selectors with calibrated data per head.
struct HeadId {
  int32_t layer = 0;
  int32_t kv_head = 0;
};

// Keys of one block, exactly as stored in the cache (already rounded to its dtype).
struct BlockKeys {
  const float* keys = nullptr;  // [num_tokens, head_dim] f32; row-major
  int32_t num_tokens = 0;       // tokens in the block so far, 1 .. block_tokens
  int32_t first_new = 0;        // tokens before this one were passed by an earlier call with the same entry
};

// Some blocks of one KV head, ready to be scored.
struct ScoreBlocks {
  HeadId head;
  int32_t num_blocks = 0;
  int32_t num_ahead = 0;  // more pointers behind the last block, to what is scored next: prefetch them or ignore them
  const std::byte* const* entries = nullptr;  // [num_blocks + num_ahead] pointers to [block_bytes] bytes
  const void* const* keys = nullptr;  // [num_blocks + num_ahead] pointers to [block_tokens, head_dim] kv_dtype; rows key_token_stride elements apart
  int64_t key_token_stride = 0;
};

class Selector {
 public:
  virtual ~Selector() = default;

  virtual std::string name() const = 0;  // the policy text that makes it: "sign", "q2", "quest16:int8", "oracle"
  virtual int32_t block_tokens() const = 0;
  virtual int64_t block_bytes() const = 0;
  // Bytes of index (or keys) that scoring one token of one KV head reads; the default is what encode() stores.
  virtual double bytes_per_token() const { return static_cast<double>(block_bytes()) / block_tokens(); }

  // The first token of a block whose key encode() reads when tokens [first_new, num_tokens) come in; keys before it are not
  // converted (and are not valid in BlockKeys). 0 by default.
  virtual int32_t first_key_read(int32_t first_new, int32_t num_tokens) const {
    static_cast<void>(first_new), static_cast<void>(num_tokens);
    return 0;
  }
  // Writes (or extends) the entry of one block. A token whose block is not full yet is scored all the same.
  virtual void encode(HeadId head, const BlockKeys& block,
                      std::byte* entry) const = 0;  // [block_bytes] bytes; 64-byte aligned when block_bytes is a multiple of 64

  // Prepares the queries of one group once per step.
  virtual std::size_t query_state_bytes() const = 0;
  virtual void prepare(HeadId head,
                       const float* q,               // [group, head_dim] f32; already multiplied by the attention scale
                       std::byte* state) const = 0;  // [query_state_bytes] bytes; 64-byte aligned
  // Estimated logits of every token of the blocks, the tail of an unfinished block included (its values are ignored).
  virtual void score(const std::byte* state,  // [query_state_bytes] bytes
                     const ScoreBlocks& blocks,
                     float* scores,                      // [group, score_stride] f32; token t of block b at [b * block_tokens + t]
                     int64_t score_stride) const = 0;
};

}  // namespace rarefy
