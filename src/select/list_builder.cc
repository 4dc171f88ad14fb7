#include "select/list_builder.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace rarefy {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kSampleTokens = 2048;   // at least, where there are as many: 6 % of 32,768 tokens
constexpr float kSpikeMargin = 1.0f;      // nats
constexpr float kSpikeRounding = 0.01f;   // nats; by which a group score may differ from score - L_h, and more
constexpr int32_t kMinSampleBlocks = 32;  // large blocks: tokens of one block are alike
constexpr int32_t kRunTokens = 512;       // scores of a run and 4 queries take 8 KiB of the L1 cache

int32_t run_blocks(int32_t block_tokens) { return std::clamp(kRunTokens / block_tokens, 1, kMaxRunBlocks); }

float log_add(float a, float b) {
  const float high = std::max(a, b), low = std::min(a, b);
  return std::isfinite(low) ? high + std::log1p(std::exp(low - high)) : high;
}

float* score_buffer(AlignedBuffer& buffer, int64_t count) {
  return buffer.reserve_elements<float>(static_cast<size_t>(count));
}

}  // namespace

ScoreBlocks ListBuilder::blocks_to_score(int32_t first_block, int32_t stride, int32_t num_blocks,
                                         BlockPointers& pointers) const {
  // What follows may be prefetched while these are scored.
  const int32_t rest = (source_->num_blocks() - 1 - first_block) / stride + 1 - num_blocks;
  const int32_t num_ahead = std::clamp(rest, 0, std::min(num_blocks, kMaxRunBlocks - num_blocks));
  ScoreBlocks blocks = source_->blocks(first_block, stride, num_blocks, num_ahead, pointers);
  add_survey(blocks, first_block, stride);
  return blocks;
}

void ListBuilder::score(int32_t first_block, int32_t stride, int32_t num_blocks, float* scores,
                        int64_t score_stride) const {
  BlockPointers pointers;
  problem_.selector->score(scratch_->state.data(), blocks_to_score(first_block, stride, num_blocks, pointers), scores,
                           score_stride);
}

void ListBuilder::set(const Problem& problem, const BlockSource& source, ListScratch& scratch) {
  problem_ = problem;
  scratch_ = &scratch;
  source_.emplace(source);
  passes_ = 0;
}

void ListBuilder::begin() {
  prepare();
  sample();
  guess_thresholds();
}

// The query state and the survey behind it.
void ListBuilder::prepare() {
  const Selector& selector = *problem_.selector;
  selector.prepare(source_->head(), problem_.q, scratch_->state.reserve(std::max<size_t>(selector.query_state_bytes(), 1)));
  survey();
}

void ListBuilder::add_survey(ScoreBlocks& blocks, int32_t first_block, int32_t stride) const {
  const int64_t num_values = problem_.selector->survey_values();
  if (num_values == 0) return;
  blocks.survey = scratch_->survey.data() + first_block * num_values;
  blocks.survey_stride = stride * num_values;
}

void ListBuilder::survey() {
  const Selector& selector = *problem_.selector;
  const int64_t num_values = selector.survey_values();
  if (num_values == 0) return;
  const int32_t num_blocks = source_->num_blocks(), run = run_blocks(source_->block_tokens());
  scratch_->survey.resize(static_cast<size_t>(num_blocks * num_values));
  BlockPointers pointers;
  for (int32_t block = 0; block < num_blocks; block += run) {
    const int32_t count = std::min(run, num_blocks - block);
    const int32_t num_ahead = std::min({run, num_blocks - block - count, kMaxRunBlocks - count});
    selector.survey(scratch_->state.data(), source_->blocks(block, 1, count, num_ahead, pointers),
                    scratch_->survey.data() + block * num_values);
  }
  const SampleBlocks sampled = sample_blocks();
  Survey all;
  all.values = scratch_->survey.data();
  all.num_blocks = num_blocks;
  all.num_tokens = source_->kv_len();
  all.sample = source_->blocks(sampled.first, sampled.step, std::min(sampled.count, kMaxRunBlocks), 0, pointers);
  add_survey(all.sample, sampled.first, sampled.step);
  selector.settle(scratch_->state.data(), all);
}

// Adds weight * exp(score) of some blocks to the sums; tokens past the end do not count.
void ListBuilder::add_to_sums(const float* scores, int64_t score_stride, int32_t num_tokens, float log_weight) {
  for (int32_t query = 0; query < problem_.group; ++query) {
    const float sum = cpu::log_sum_exp(scores + query * score_stride, num_tokens) + log_weight;
    log_sums_[query] = log_add(log_sums_[query], sum);
  }
}

ListBuilder::SampleBlocks ListBuilder::sample_blocks() const {
  const int32_t block_tokens = source_->block_tokens(), num_blocks = source_->num_blocks();
  SampleBlocks result;
  // What holds sink or local tokens, or is the first or the (unfinished) last block, counts in full.
  result.first = std::min(num_blocks, std::max(1, (problem_.num_sink + block_tokens - 1) / block_tokens));
  result.end = std::max(result.first, std::min(num_blocks - 1, (source_->kv_len() - problem_.num_local) / block_tokens));
  const int32_t num_middle = result.end - result.first;
  result.step = std::max(1, num_middle / std::max(kSampleTokens / block_tokens, kMinSampleBlocks));
  result.count = (num_middle + result.step - 1) / result.step;
  return result;
}

void ListBuilder::sample() {
  const int32_t block_tokens = source_->block_tokens(), num_blocks = source_->num_blocks(), kv_len = source_->kv_len();
  const int32_t run = run_blocks(block_tokens);
  const auto [middle, step, num_sampled, tail] = sample_blocks();
  log_sums_.fill(-kInfinity);
  for (const auto& [first, end] : {std::pair{0, middle}, std::pair{tail, num_blocks}}) {
    for (int32_t block = first; block < end; block += run) {
      const int32_t count = std::min(run, end - block);
      const int64_t stride = int64_t{count} * block_tokens;
      float* scores = score_buffer(scratch_->sample_scores, problem_.group * stride);  // [group, stride] f32
      score(block, 1, count, scores, stride);
      add_to_sums(scores, stride, std::min(count * block_tokens, kv_len - block * block_tokens), 0.0f);
    }
  }

  sample_tokens_ = num_sampled * block_tokens;
  sample_weight_ = num_sampled > 0 ? static_cast<float>(tail - middle) / static_cast<float>(num_sampled) : 0.0f;
  float* scores =
      score_buffer(scratch_->sample_scores, int64_t{problem_.group} * sample_tokens_);  // [group, sample_tokens] f32
  for (int32_t done = 0; done < num_sampled; done += run) {
    score(middle + done * step, step, std::min(run, num_sampled - done), scores + int64_t{done} * block_tokens,
          sample_tokens_);
  }
  if (num_sampled > 0) add_to_sums(scores, sample_tokens_, sample_tokens_, std::log(sample_weight_));
}

void ListBuilder::guess_thresholds() {
  scratch_->sample_group.resize(static_cast<size_t>(sample_tokens_));
  cpu::group_scores(reinterpret_cast<const float*>(scratch_->sample_scores.data()), sample_tokens_, problem_.group,
                    log_sums_.data(), sample_tokens_, scratch_->sample_group.data());
  thresholds_ =
      SpendThresholds::guess(problem_.rule, scratch_->sample_group.data(), sample_tokens_, sample_weight_, scratch_->sums);
}

void ListBuilder::scan(ScanPart& part) const {
  const int32_t block_tokens = source_->block_tokens();
  const int32_t run = run_blocks(block_tokens);
  const int32_t first_token = problem_.num_sink, end_token = source_->kv_len() - problem_.num_local;
  const cpu::CandidateFilter filter = thresholds_.filter(problem_.rule);
  const Selector& selector = *problem_.selector;
  const int64_t stride = int64_t{run} * block_tokens + cpu::kCandidatePadding;
  float* groups = score_buffer(part.groups, stride);  // [stride] f32
  part.maxima.fill(-kInfinity);
  part.count = 0;
  const auto room = static_cast<size_t>(stride);
  for (int32_t block = part.first_block; block < part.end_block; block += run) {
    const int32_t count = std::min(run, part.end_block - block);
    const int32_t first = std::max(first_token, block * block_tokens);
    const int32_t end = std::min(end_token, (block + count) * block_tokens);
    if (first >= end) continue;
    const int32_t skipped = first - block * block_tokens;
    BlockPointers pointers;
    const ScoreBlocks blocks = blocks_to_score(block, 1, count, pointers);
    const auto score_queries = [&] {
      float* scores = score_buffer(part.scores, problem_.group * stride);  // [group, stride] f32
      selector.score(scratch_->state.data(), blocks, scores, stride);
      return scores + skipped;
    };
    const float* scores = nullptr;  // [group, stride] f32; where the selector has no group scores
    if (!selector.score_groups(scratch_->state.data(), blocks, log_sums_.data(), groups)) {
      scores = score_queries();
      cpu::group_scores(scores, stride, problem_.group, log_sums_.data(), end - first, groups + skipped);
    }
    if (part.token_ids.size() < part.count + room) {
      part.token_ids.resize(2 * (part.count + room));
      part.group_scores.resize(part.token_ids.size());
    }
    const cpu::FoundCandidates found =
        cpu::filter_candidates(filter, groups + skipped, first, end - first, part.token_ids.data() + part.count,
                               part.group_scores.data() + part.count);
    part.count += found.count;
    if (found.largest > kSpikeMargin - kSpikeRounding) {
      if (scores == nullptr) scores = score_queries();
      cpu::raise_maxima(scores, stride, problem_.group, end - first, part.maxima.data());
    }
  }
}

void ListBuilder::scan_all() {
  for (ScanPart& part : scratch_->parts) scan(part);
}

Candidates ListBuilder::gather() {
  const std::vector<ScanPart>& parts = scratch_->parts;
  if (parts.size() == 1) return {parts[0].token_ids.data(), parts[0].group_scores.data(), parts[0].count};
  std::vector<int32_t>& ids = scratch_->candidate_ids;      // [count] i32
  std::vector<float>& scores = scratch_->candidate_scores;  // [count] f32
  ids.clear();
  scores.clear();
  for (const ScanPart& part : parts) {
    ids.insert(ids.end(), part.token_ids.begin(), part.token_ids.begin() + part.count);
    scores.insert(scores.end(), part.group_scores.begin(), part.group_scores.begin() + part.count);
  }
  return {ids.data(), scores.data(), static_cast<int32_t>(ids.size())};
}

int32_t ListBuilder::finish(int32_t* token_ids, float* log_weight) {
  passes_ = 1;
  bool raised = false;
  for (const ScanPart& part : scratch_->parts) {
    for (int32_t query = 0; query < problem_.group; ++query) {
      if (part.maxima[query] - kSpikeMargin > log_sums_[query]) {
        log_sums_[query] = part.maxima[query] - kSpikeMargin;
        raised = true;
      }
    }
  }
  if (raised) {
    guess_thresholds();
    scan_all();
    ++passes_;
  }
  const int32_t num_sink = problem_.num_sink, first_local = source_->kv_len() - problem_.num_local;
  int32_t selected = kLowerThresholds;
  while ((selected = spend(problem_.rule, thresholds_, gather(), scratch_->spend, token_ids + num_sink,
                           log_weight + num_sink)) == kLowerThresholds) {
    thresholds_.lower();
    scan_all();
    ++passes_;
  }
  for (int32_t token = 0; token < num_sink; ++token) {
    token_ids[token] = token;
    log_weight[token] = 0.0f;
  }
  int32_t count = num_sink + selected;
  for (int32_t token = first_local; token < source_->kv_len(); ++token, ++count) {
    token_ids[count] = token;
    log_weight[count] = 0.0f;
  }
  return count;
}

}  // namespace rarefy
