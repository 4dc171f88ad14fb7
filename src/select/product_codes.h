// pqMxB: product quantisation (PQCache, arXiv 2407.12820). A key is cut into M pieces; each piece is described by the nearest of
// 2^B centroids, B bits. The score is sum_j q_j . centroid(j, code_j): a table of M 2^B numbers per query, M lookups per token.
//
// Centroids are trained once per cache, layer and KV head on its first max(1024, 16 * 2^B) tokens by k-means (squared distance,
// at most ten rounds, fixed start, f32), and then frozen. The first four of those tokens are left out: attention sinks lie far
// from everything else and would take centroids of their own.
//
//   B = 4  codes in halves of bytes, scanned by byte shuffles with tables of 8 bits (cpu/select/nibble_scores.h): M / 2 bytes
//          per token (M is padded to a multiple of 8)
//   else   a stream of bits, M B / 8 bytes per token, tables in f32
#pragma once

#include <memory>

#include "rarefy/select/selector.h"

namespace rarefy {

class ProductCodeSelector final : public Selector {
 public:
  static constexpr int32_t kBlockTokens = 16;
  static constexpr int32_t kSkippedTokens = 4;

  ProductCodeSelector(const SelectorShape& shape, int32_t num_pieces, int32_t bits);

  std::string name() const override { return "pq" + std::to_string(num_pieces_) + "x" + std::to_string(bits_); }
  int32_t block_tokens() const override { return kBlockTokens; }
  int64_t block_bytes() const override;
  int32_t first_key_read(int32_t first_new, int32_t) const override { return first_new; }
  int64_t trained_bytes() const override;
  int32_t training_tokens() const override;
  Status train(HeadId head, const float* keys, int32_t num_tokens, std::byte* trained) const override;
  void encode(HeadId head, const BlockKeys& block, std::byte* entry) const override;  // [block_bytes] bytes
  size_t query_state_bytes() const override;
  void prepare(HeadId head, const float* q, std::byte* state) const override;
  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override;

  int32_t num_pieces() const { return num_pieces_; }
  int32_t num_centroids() const { return 1 << bits_; }
  int32_t piece_dim() const { return shape_.head_dim / num_pieces_; }
  // Of one piece, within trained data.
  const float* centroids(const std::byte* trained, int32_t piece) const;     // [piece_dim, num_centroids] f32
  const float* half_norms(const std::byte* trained, int32_t piece) const;    // [num_centroids] f32; |c|^2 / 2
  int32_t code(const std::byte* entry, int32_t token, int32_t piece) const;  // entry [block_bytes] bytes
  // B = 4: what a score can differ by because tables have 8 bits: state [query_state_bytes] bytes
  float table_step(const std::byte* state, int32_t query) const;

 private:
  bool uses_nibbles() const { return bits_ == 4; }
  void set_code(std::byte* entry, int32_t token, int32_t piece, int32_t code) const;  // entry [block_bytes] bytes
  int32_t padded_group() const { return (shape_.group + 3) / 4 * 4; }
  // state [query_state_bytes] bytes, scores [group, score_stride] f32
  template <int32_t kWidth>
  void score_stream(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const;

  SelectorShape shape_;
  int32_t num_pieces_, bits_;
  int32_t num_lanes_;  // B = 4
};

}  // namespace rarefy
