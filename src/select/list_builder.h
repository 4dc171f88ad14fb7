// ListBuilder: one list of an IndexSet, from a prepared query group to token ids and weights.
//
//   set()     says what to do
//   begin()   lets the selector survey all blocks, if it does; scores a fixed sample of blocks: estimates L_h, guesses thresholds
//   scan()    scores every block of a range once and keeps candidates; ranges may be scanned by different threads
//   finish()  settles L_h and spends the budget; scans again itself in the rare cases that need it
//
// L_h, the log-sum-exp of query head h's scores, is max(ln Z_h, M_h - 1). Z_h adds up exp(score) over the blocks that hold sink
// and local tokens and, weighted, over every k-th of the others, at least 2,048 tokens in 32 blocks; M_h is the largest score of
// all tokens. The maximum catches a single token outside the sample that outweighs everything else; neither depends on the
// random numbers. Should M_h - 1 exceed what begin() estimated, a_i were too high, and the ranges are scanned again (without the
// margin of one nat that is twice as frequent and changes little: L_h only weighs the heads of a group against each other).
#pragma once

#include <optional>
#include <vector>

#include "core/aligned_buffer.h"
#include "rarefy/select/selection.h"
#include "select/block_source.h"
#include "select/spend.h"

namespace rarefy {

// Candidates of one range of blocks.
struct ScanPart {
  int32_t first_block = 0, end_block = 0;
  std::vector<int32_t> token_ids;   // [count, padded] i32; ascending
  std::vector<float> group_scores;  // [count, padded] f32
  int32_t count = 0;
  // `maxima` [group] f32; over the range's tokens; those that do not raise L_h may be missing
  std::array<float, kMaxGroup> maxima;
  AlignedBuffer scores, groups;  // [group, run tokens] f32 and [run tokens] f32; scratch
};

// What making a list needs. The next list of the same thread finds it in the cache: with memory of its own, a list would begin by
// fetching 120 KiB.
struct ListScratch {
  AlignedBuffer state;        // [query_state_bytes] bytes
  std::vector<float> survey;  // [num_blocks, survey_values] f32; empty for selectors without a survey
  std::vector<ScanPart> parts;
  AlignedBuffer sample_scores;      // [group, sample_tokens] f32; of the weighted blocks
  std::vector<float> sample_group;  // [sample_tokens] f32; a of the same tokens
  AlignedBuffer sums;               // [sample_tokens, padded] f32
  SpendScratch spend;
  std::vector<int32_t> candidate_ids;   // [count] i32
  std::vector<float> candidate_scores;  // [count] f32
};

class ListBuilder {
 public:
  struct Problem {
    const Selector* selector = nullptr;
    int32_t group = 1;
    int32_t num_sink = 0, num_local = 0;  // tokens in the list whatever their scores
    SpendRule rule;
    const float* q = nullptr;  // [group, head_dim] f32; multiplied by the attention scale
  };

  // `scratch` belongs to the list from begin() to finish().
  void set(const Problem& problem, const BlockSource& source, ListScratch& scratch);
  void begin();
  // One of the scratch memory's parts.
  void scan(ScanPart& part) const;
  // Writes at most num_sink + min(budget, num_tokens) + num_local entries, ascending; returns how many.
  int32_t finish(int32_t* token_ids,  // [max_selected] i32
                 float* log_weight);  // [max_selected] f32

  // Bounds what a list of these tokens leaves out, by the scratch memory it was made with. Pre: finish() was called, the selector
  // has bounds.
  void bound_outside(const int32_t* token_ids,  // [count] i32; ascending
                     int32_t count,
                     const float* lse,        // [group] f32
                     OutsideBound* outside);  // not a tensor: one for each of the group's query heads

  // Times that finish() needed every token scored, 1 or more; the sample is read again from cache and not counted.
  int32_t passes() const { return passes_; }
  const std::array<float, kMaxGroup>& log_sums() const { return log_sums_; }  // [group] f32; L_h

 private:
  // Blocks of the sample: first, first + step, ...
  struct SampleBlocks {
    int32_t first = 0, step = 1, count = 0, end = 0;  // blocks before `first` and from `end` on count in full
  };
  SampleBlocks sample_blocks() const;
  void prepare();
  void survey();
  void add_survey(ScoreBlocks& blocks, int32_t first_block, int32_t stride) const;
  void sample();
  void guess_thresholds();
  // scores [group, score_stride] f32
  void add_to_sums(const float* scores, int64_t score_stride, int32_t num_tokens, float log_weight);
  ScoreBlocks blocks_to_score(int32_t first_block, int32_t stride, int32_t num_blocks, BlockPointers& pointers) const;
  void score(int32_t first_block, int32_t stride, int32_t num_blocks, float* scores, int64_t score_stride) const;
  void scan_all();
  Candidates gather();

  Problem problem_;
  std::optional<BlockSource> source_;
  ListScratch* scratch_ = nullptr;
  std::array<float, kMaxGroup> log_sums_;  // [group] f32
  SpendThresholds thresholds_;
  int32_t passes_ = 0;
  int32_t sample_tokens_ = 0;
  float sample_weight_ = 0.0f;  // tokens that a token of the sample stands for
};

}  // namespace rarefy
