// ds16, ds32: Double Sparsity (arXiv 2408.07092). Of each key only a few channels are kept, 16 or 32 of head_dim, in 4 or 2 bits;
// the score is the part of q . k that these channels make up. One set of channels per KV head.
//
//   score = sum over channels c of q_c (mean_c + step_c (code_c - (levels - 1) / 2))
//
// mean_c and step_c are frozen when the cache has seen 512 tokens: the mean, and the best uniform step for normal values with
// the channel's standard deviation (0.3352 of it with 16 levels, 0.9957 with 4). Numbers per channel rather than per token cost
// no bytes, and outlier channels keep their resolution. Channels come from a file (option channels=PATH, made by `rarefy
// calibrate`) or, without one, are those with the largest variance over the same tokens: a channel that is the same for all
// tokens adds the same to every score. The first four tokens, attention sinks, do not count.
//
// Scanned by byte shuffles (cpu/select/nibble_scores.h): a nibble holds one channel of 4 bits or two of 2. Bytes per token: 8 for
// ds16, 4 with 2 bits, twice that for ds32.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "rarefy/select/selector.h"

namespace rarefy {

// Channels by importance, from a file: JSON {"head_dim": D, "layers": [[[channel ids], one list per KV head], one per layer]}.
// A layer without full attention may have an empty list.
struct ChannelFile {
  std::string path;
  std::vector<std::vector<std::vector<int32_t>>> channels;  // [num_layers][num_kv_heads or 0][num_channels]

  // Refuses what does not fit the shape: another head_dim, layers or heads that are missing, fewer than num_channels channels,
  // channels that do not exist or stand twice.
  static Expected<ChannelFile> load(const std::string& path, const SelectorShape& shape, int32_t num_channels);
};

// What training leaves: [num_channels] of each.
struct TrainedChannels {
  const int32_t* ids;  // [num_channels] i32
  const float* means;  // [num_channels] f32
  const float* steps;  // [num_channels] f32
};

class ChannelCodeSelector final : public Selector {
 public:
  static constexpr int32_t kBlockTokens = 16;
  static constexpr int32_t kTrainingTokens = 512;
  static constexpr int32_t kSkippedTokens = 4;

  // `file` without path: channels are chosen by train().
  ChannelCodeSelector(const SelectorShape& shape, int32_t num_channels, int32_t bits, ChannelFile file);

  std::string name() const override;
  int32_t block_tokens() const override { return kBlockTokens; }
  int64_t block_bytes() const override;
  int32_t first_key_read(int32_t first_new, int32_t) const override { return first_new; }
  int64_t trained_bytes() const override { return int64_t{num_channels_} * 3 * 4; }
  int32_t training_tokens() const override { return kTrainingTokens; }
  Status train(HeadId head, const float* keys, int32_t num_tokens, std::byte* trained) const override;
  void encode(HeadId head, const BlockKeys& block, std::byte* entry) const override;  // [block_bytes] bytes
  size_t query_state_bytes() const override;
  void prepare(HeadId head, const float* q, std::byte* state) const override;
  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override;

  TrainedChannels trained_channels(const std::byte* trained) const;  // [trained_bytes] bytes
  // Of channel number `index`: entry [block_bytes] bytes
  int32_t code(const std::byte* entry, int32_t token, int32_t index) const;
  int32_t num_levels() const { return 1 << bits_; }
  float table_step(const std::byte* state, int32_t query) const;  // state [query_state_bytes] bytes
  int32_t num_groups() const { return num_channels_ * bits_ / 4; }

 private:
  SelectorShape shape_;
  int32_t num_channels_, bits_, num_lanes_;
  ChannelFile file_;
};

}  // namespace rarefy
