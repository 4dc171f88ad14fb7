// socket[:KxL]: SOCKET (arXiv 2602.06283). L hash tables of K signs, as in magicpig, but the query is soft: in each table it has
// a probability for each of the 2^K buckets, and a key counts by the probabilities of its buckets.
//
//   h_p = tanh(w_p . q / scale) / sqrt(head_dim)                                     for each of the K L planes w_p
//   P_l(bucket) = prod over the K planes of table l of  exp(+-h_p / 0.5) / (2 cosh(h_p / 0.5))
//   score = ln (sum_l P_l(bucket_l(k))) + ln |v|
//
// The original softmax over 2^K corners factorises into the product above, so no table of 2^K numbers is needed: one for the first
// ceil(K / 2) signs and one for the others, multiplied. Scores are log weights: the original ranks by the sum times |v|. Selectors
// get queries that are multiplied by the attention scale; it is taken to be 1 / sqrt(head_dim), as the original has them
// without. Keys have no mean or length here: a sign only knows a direction.
//
// Layout: blocks of 16 tokens; for each token L ids in 16 bits, then |v| in bf16. Bytes per token: 2 L + 2, 112 at the default of
// K = 11 and L = 55.
#pragma once

#include <memory>

#include "rarefy/select/selector.h"
#include "select/hash_planes.h"

namespace rarefy {

class SocketSelector final : public Selector {
 public:
  static constexpr int32_t kBlockTokens = 16;
  static constexpr int32_t kDefaultSigns = 11, kDefaultTables = 55;
  static constexpr double kTemperature = 0.5;

  SocketSelector(const SelectorShape& shape, int32_t num_signs, int32_t num_tables);

  std::string name() const override;
  int32_t block_tokens() const override { return kBlockTokens; }
  int64_t block_bytes() const override { return kBlockTokens * token_bytes(); }
  int32_t first_key_read(int32_t first_new, int32_t) const override { return first_new; }
  bool reads_values() const override { return true; }
  void encode(HeadId head, const BlockKeys& block, std::byte* entry) const override;  // [block_bytes] bytes
  size_t query_state_bytes() const override;
  void prepare(HeadId head, const float* q, std::byte* state) const override;
  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override;

  const HashPlanes& planes() const { return planes_; }
  // entry [block_bytes] bytes
  int32_t token_id(const std::byte* entry, int32_t token, int32_t table) const;
  float value_norm(const std::byte* entry, int32_t token) const;

 private:
  int64_t token_bytes() const { return 2 * (int64_t{num_tables_} + 1); }
  int32_t low_signs() const { return (num_signs_ + 1) / 2; }
  int32_t padded_group() const { return (shape_.group + 3) / 4 * 4; }
  int64_t table_rows() const { return (int64_t{1} << low_signs()) + (int64_t{1} << (num_signs_ - low_signs())); }
  // state [query_state_bytes] bytes, scores [group, score_stride] f32
  template <int32_t kWidth>
  void score_tables(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const;

  SelectorShape shape_;
  int32_t num_signs_, num_tables_;
  HashPlanes planes_;
};

}  // namespace rarefy
