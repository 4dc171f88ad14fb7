// Selector: an index over keys and a score against it. This is all that a new selector implements; budgets, group scores,
// sampling, certificates, page sharing and audits are inherited.
//
// The index is a sequence of entries, one for every `block_tokens()` consecutive tokens of a KV head. encode() must be a pure
// function of the keys in the block: then pages can be shared, copied and rebuilt, and appending one token at a time gives
// the same bytes as building at once. score() estimates scale * q . k for every token of some blocks.
//
// What else a selector may ask for, all off by default: data trained per head from the first tokens of the cache (codebooks,
// channels), the values beside the keys, a survey of all blocks before any is scored, and bounds of the true logits.
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

// Which head an entry belongs to, for selectors with calibrated or trained data per head.
struct HeadId {
  int32_t layer = 0;
  int32_t kv_head = 0;
  const std::byte* trained = nullptr;  // [trained_bytes] bytes; what train() wrote; null for selectors that do not train
};

// Keys of one block, exactly as stored in the cache (already rounded to its dtype).
struct BlockKeys {
  const float* keys = nullptr;  // [num_tokens, head_dim] f32; row-major
  int32_t num_tokens = 0;       // tokens in the block so far, 1 .. block_tokens
  int32_t first_new = 0;        // tokens before this one were passed by an earlier call with the same entry
  // `values` [num_tokens, head_dim] f32; rows are valid where those of `keys` are; null unless reads_values()
  const float* values = nullptr;
};

// Some blocks of one KV head, ready to be scored.
struct ScoreBlocks {
  HeadId head;
  int32_t num_blocks = 0;
  int32_t num_ahead = 0;  // more pointers behind the last block, to what is scored next: prefetch them or ignore them
  const std::byte* const* entries = nullptr;  // [num_blocks + num_ahead] pointers to [block_bytes] bytes
  // `keys` [num_blocks + num_ahead] pointers to [block_tokens, head_dim] kv_dtype; rows key_token_stride elements apart
  const void* const* keys = nullptr;
  int64_t key_token_stride = 0;
  // `survey` [num_blocks, survey_stride] f32; a row begins with the survey_values() of its block; null without a survey
  const float* survey = nullptr;
  int64_t survey_stride = 0;
};

// What settle() gets: the surveyed numbers of all blocks, and a fixed sample of blocks to look at more closely.
struct Survey {
  float* values = nullptr;  // [num_blocks, survey_values] f32; may be changed
  int32_t num_blocks = 0;
  int32_t num_tokens = 0;  // in these blocks; the last one may be unfinished
  ScoreBlocks sample;      // every k-th block of those between sink and local tokens; may be empty
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
  // Whether encode() wants BlockKeys::values.
  virtual bool reads_values() const { return false; }
  // Writes (or extends) the entry of one block. A token whose block is not full yet is scored all the same.
  virtual void encode(
      HeadId head, const BlockKeys& block,
      std::byte* entry) const = 0;  // [block_bytes] bytes; 64-byte aligned when block_bytes is a multiple of 64

  // Data per layer and KV head, trained once per cache from the first tokens of the first sequence that has so many, then
  // frozen; until then steps are dense and nothing is encoded. All other calls get it as HeadId::trained. train() must be a
  // function of its arguments alone.
  virtual int64_t trained_bytes() const { return 0; }
  virtual int32_t training_tokens() const { return 0; }
  virtual Status train(HeadId head,
                       const float* keys,  // [num_tokens, head_dim] f32; as stored in the cache
                       int32_t num_tokens,
                       std::byte* trained) const {  // [trained_bytes] bytes; 64-byte aligned
    static_cast<void>(head), static_cast<void>(keys), static_cast<void>(num_tokens), static_cast<void>(trained);
    return {};
  }

  // Prepares the queries of one group once per step.
  virtual std::size_t query_state_bytes() const = 0;
  virtual void prepare(HeadId head,
                       const float* q,               // [group, head_dim] f32; already multiplied by the attention scale
                       std::byte* state) const = 0;  // [query_state_bytes] bytes; 64-byte aligned
  // Estimated logits of every token of the blocks, the tail of an unfinished block included (its values are ignored).
  virtual void score(const std::byte* state,  // [query_state_bytes] bytes
                     const ScoreBlocks& blocks,
                     float* scores,  // [group, score_stride] f32; token t of block b at [b * block_tokens + t]
                     int64_t score_stride) const = 0;
  // The same scores reduced over the group, for selectors to which that is less work than storing them all: the largest score -
  // log_sums of each token, moved into +-1e30, NaN left out. False, and nothing written, where a selector does without.
  virtual bool score_groups(const std::byte* state,  // [query_state_bytes] bytes
                            const ScoreBlocks& blocks,
                            const float* log_sums,        // [group] f32
                            float* group_scores) const {  // [num_blocks, block_tokens] f32
    static_cast<void>(state), static_cast<void>(blocks), static_cast<void>(log_sums), static_cast<void>(group_scores);
    return false;
  }
  // Whether all tokens of a block get the same score: such a selector can be the first part of COARSE+FINE.
  virtual bool scores_blocks() const { return false; }
  // Whether some tokens can only be chosen when nothing else is left: their inclusion probability is 0, and neither the
  // estimate nor its certificate knows of them.
  virtual bool is_hard_filter() const { return false; }

  // A survey of all blocks, once per list and before any score(): survey() in runs of blocks, then settle() with all numbers,
  // which may write to the state. score() gets the numbers of its blocks as ScoreBlocks::survey.
  virtual int32_t survey_values() const { return 0; }  // f32 numbers a block; 0 = no survey
  virtual void survey(const std::byte* state,          // [query_state_bytes] bytes
                      const ScoreBlocks& blocks,
                      float* values) const {  // [num_blocks, survey_values] f32
    static_cast<void>(state), static_cast<void>(blocks), static_cast<void>(values);
  }
  virtual void settle(std::byte* state,  // [query_state_bytes] bytes
                      const Survey& survey) const {
    static_cast<void>(state), static_cast<void>(survey);
  }

  // Upper bounds, for the bounded mode: of the true scale * q . k of every token, rounding of the selector's own arithmetic
  // included, and of the norm |v| of every value of a block. Both or neither.
  virtual bool has_bounds() const { return false; }
  virtual void bound(const std::byte* state,  // [query_state_bytes] bytes
                     const ScoreBlocks& blocks,
                     float* bounds,  // [group, bound_stride] f32; token t of block b at [b * block_tokens + t]
                     int64_t bound_stride) const {
    static_cast<void>(state), static_cast<void>(blocks), static_cast<void>(bounds), static_cast<void>(bound_stride);
  }
  virtual void value_bounds(const ScoreBlocks& blocks,
                            float* norms) const {  // [num_blocks] f32
    static_cast<void>(blocks), static_cast<void>(norms);
  }

  // Why encode, prepare or score failed, once one has: the step fails. Selectors from outside the program can.
  virtual Status failure() const { return {}; }
};

}  // namespace rarefy
