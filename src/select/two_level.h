// COARSE+FINE[@SHARE]: a page score for all tokens, a token code for those in the best pages.
//
// Every step surveys the page scores of all blocks, ranks blocks by the largest estimated probability over the heads of the group,
// and scores the tokens of the best SHARE of them (0.25 by default) by FINE. Tokens elsewhere keep an estimate made of their
// page's score, so that one draw runs over all tokens and sums stay unbiased; what it costs is variance where the estimate is
// poor. `hard:COARSE+FINE` gives those tokens no score at all instead: they come last, only when nothing else is left.
//
// The estimate. A page score such as Quest's is an upper bound and lies far above the logits of most tokens: as a_i it would
// spend the budget on tokens that do not matter. So every step fits, per query head and on a fixed sample of the blocks that are
// not kept, the logarithm of the mean weight in a page, y = ln mean exp(FINE score), to its page score x by least squares,
// and uses
//
//   a = intercept + slope x + (residual variance) / 2,       slope >= 0
//
// which is ln E[weight | x] for normal residuals. The sample holds at most 1,024 tokens and does not depend on random numbers.
//
// Blocks are as large as the larger of the two selectors' blocks. Entry: COARSE's entries, then FINE's. Bytes per token of a step:
// COARSE's, and SHARE of FINE's (the sample's share of FINE is not counted).
#pragma once

#include <memory>
#include <string>

#include "rarefy/select/selector.h"

namespace rarefy {

// What takes a page score to the estimated log weight of its tokens.
struct PageFit {
  float slope = 1.0f, intercept = 0.0f;
};
// Of `count` pairs; with fewer than 3, or without any spread in x, a constant.
PageFit fit_pages(const double* x,  // [count] f64; page scores
                  const double* y,  // [count] f64; ln of the mean weight in the page
                  int32_t count);

class TwoLevelSelector final : public Selector {
 public:
  // Score of what a hard filter drops: finite, so that differences stay numbers, and below everything.
  static constexpr float kDropped = -1e30f;
  static constexpr int32_t kFitTokens = 1024;

  // Pre: coarse->scores_blocks(), neither has a survey, 0 < share <= 1.
  TwoLevelSelector(const SelectorShape& shape, std::shared_ptr<const Selector> coarse, std::shared_ptr<const Selector> fine,
                   double share, bool hard);

  std::string name() const override;
  int32_t block_tokens() const override { return block_tokens_; }
  int64_t block_bytes() const override { return block_bytes_; }
  double bytes_per_token() const override { return coarse_->bytes_per_token() + share_ * fine_->bytes_per_token(); }
  bool is_hard_filter() const override { return hard_; }

  int32_t first_key_read(int32_t first_new, int32_t num_tokens) const override;
  bool reads_values() const override { return coarse_->reads_values() || fine_->reads_values(); }
  void encode(HeadId head, const BlockKeys& block, std::byte* entry) const override;  // [block_bytes] bytes
  int64_t trained_bytes() const override { return fine_trained_offset_ + fine_->trained_bytes(); }
  int32_t training_tokens() const override;
  Status train(HeadId head, const float* keys, int32_t num_tokens, std::byte* trained) const override;

  size_t query_state_bytes() const override { return fine_state_offset_ + fine_->query_state_bytes(); }
  void prepare(HeadId head, const float* q, std::byte* state) const override;
  int32_t survey_values() const override { return num_pages_ * shape_.group; }
  void survey(const std::byte* state, const ScoreBlocks& blocks, float* values) const override;
  void settle(std::byte* state, const Survey& survey) const override;
  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override;

  Status failure() const override {
    RAREFY_RETURN_IF_ERROR(coarse_->failure());
    return fine_->failure();
  }
  bool has_bounds() const override { return fine_->has_bounds() || coarse_->has_bounds(); }
  void bound(const std::byte* state, const ScoreBlocks& blocks, float* bounds, int64_t bound_stride) const override;
  void value_bounds(const ScoreBlocks& blocks, float* norms) const override;

  int32_t num_kept(int32_t num_blocks) const;  // blocks that FINE scores, ties aside

 private:
  // One of the two selectors within entries, trained data and states.
  struct Part {
    const Selector* selector;
    int32_t per_block;       // entries of this selector in one of ours
    int64_t entry_offset;    // bytes
    int64_t trained_offset;  // bytes
    size_t state_offset;     // bytes
  };
  Part coarse_part() const { return {coarse_.get(), num_pages_, 0, 0, 0}; }
  Part fine_part() const { return {fine_.get(), num_fine_, fine_entry_offset_, fine_trained_offset_, fine_state_offset_}; }
  HeadId head_of(const Part& part, HeadId head) const;
  // Lets `part` score or bound some of the blocks, in runs, and calls body(position in `ids`, scores, stride): what it wrote for
  // one of our blocks, [group, stride] f32, block_tokens of each row.
  template <typename Body>
  void run_part(const Part& part, bool bounds,
                const std::byte* state,  // [query_state_bytes] bytes
                const ScoreBlocks& blocks,
                const int32_t* ids,  // [count] i32; numbers of blocks; null = all in order
                int32_t count, Body body) const;
  // survey.sample is scored by FINE; fits [group]
  void fit(const std::byte* state, const Survey& survey, float cut, const float* log_sums, PageFit* fits) const;
  // The largest estimated probability of a block by its surveyed numbers: values [survey_values] f32, log_sums [group] f32
  float block_key(const float* values, const float* log_sums, int32_t num_pages) const;

  SelectorShape shape_;
  std::shared_ptr<const Selector> coarse_, fine_;
  double share_;
  bool hard_;
  int32_t block_tokens_, num_pages_, num_fine_;
  int64_t fine_entry_offset_, block_bytes_, fine_trained_offset_;
  size_t fine_state_offset_;
};

// "COARSE+FINE[@SHARE]", after "hard:" or not.
bool is_two_level_text(std::string_view text);
struct TwoLevelText {
  std::string_view coarse, fine, share;
  bool hard = false;
};
TwoLevelText split_two_level_text(std::string_view text);
Expected<std::shared_ptr<const Selector>> make_two_level_selector(const SelectorShape& shape, std::string_view text);

}  // namespace rarefy
