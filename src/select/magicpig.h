// magicpig[:KxL]: MagicPIG (arXiv 2410.16179). L hash tables of K signs each; a key counts by how many tables agree with the
// query in all their signs.
//
//   k' = [(k - mean) / M, sqrt(1 - |k - mean|^2 / M^2)],  q' = [q / |q|, 0]      both of length 1, q' . k' = q . (k - mean) / (|q| M)
//   signs of K L random planes; two vectors at an angle theta agree in one table with probability p = (1 - theta / pi)^K
//   c of L tables agree, p is estimated as (c + 1/2) / (L + 1), and
//   score = q . mean + |q| M cos(pi (1 - p^(1 / K)))
//
// mean and M (the largest |k - mean|) come from the cache's first 512 tokens, its first four left out, and are frozen; a later key
// that is longer than M is hashed as if its last component were 0.
//
// What differs from the original: it takes every key that collides (in at least one or two tables, so that K and L set how
// many), weights it by the exact probability of a collision, and so needs the true logit before it decides; here the number of
// collisions becomes an estimate of the logit, which any spending rule can use with a budget. The original follows the
// longest key of the whole context.
//
// Layout: blocks of 16 tokens, [L, 16] ids of K bits, one byte each for K up to 8, two up to 16. Bytes per token: L, or 2 L.
#pragma once

#include <memory>

#include "rarefy/select/selector.h"
#include "select/hash_planes.h"

namespace rarefy {

class MagicPigSelector final : public Selector {
 public:
  static constexpr int32_t kBlockTokens = 16;
  static constexpr int32_t kTrainingTokens = 512;
  static constexpr int32_t kSkippedTokens = 4;
  static constexpr int32_t kDefaultSigns = 8, kDefaultTables = 75;

  MagicPigSelector(const SelectorShape& shape, int32_t num_signs, int32_t num_tables);

  std::string name() const override;
  int32_t block_tokens() const override { return kBlockTokens; }
  int64_t block_bytes() const override { return int64_t{kBlockTokens} * num_tables_ * id_bytes(); }
  int32_t first_key_read(int32_t first_new, int32_t) const override { return first_new; }
  int64_t trained_bytes() const override { return static_cast<int64_t>(sizeof(float)) * (shape_.head_dim + 1); }
  int32_t training_tokens() const override { return kTrainingTokens; }
  Status train(HeadId head, const float* keys, int32_t num_tokens, std::byte* trained) const override;
  void encode(HeadId head, const BlockKeys& block, std::byte* entry) const override;  // [block_bytes] bytes
  size_t query_state_bytes() const override;
  void prepare(HeadId head, const float* q, std::byte* state) const override;
  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override;

  const HashPlanes& planes() const { return planes_; }
  // The id of a token in one table: entry [block_bytes] bytes
  int32_t token_id(const std::byte* entry, int32_t token, int32_t table) const;
  // The id of a query: state [query_state_bytes] bytes
  int32_t query_id(const std::byte* state, int32_t query, int32_t table) const;

 private:
  int32_t id_bytes() const { return num_signs_ <= 8 ? 1 : 2; }
  // Ids of a lifted vector by its projections: projections [num_planes] f32
  int32_t id_of(const float* projections, int32_t table) const;
  // state [query_state_bytes] bytes, scores [group, score_stride] f32
  template <typename Id>
  void score_ids(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const;
  int64_t ids_offset() const;  // of a query state

  SelectorShape shape_;
  int32_t num_signs_, num_tables_;
  HashPlanes planes_;
};

}  // namespace rarefy
