#include "select/two_level.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/select/candidates.h"
#include "rarefy/select/registry.h"

namespace rarefy {
namespace {

constexpr double kDefaultShare = 0.25;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kKept = std::numeric_limits<float>::quiet_NaN();  // in place of the estimates of a block: FINE scores it
constexpr int32_t kRunTokens = 512;                               // scored at a time; scores of 16 queries take 32 KiB
constexpr int32_t kRunPointers = 2 * kRunTokens;                  // blocks of one token, and as many ahead
constexpr int32_t kMaxRunBlocks = 512;

int64_t round_up_to_line(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

PageFit fit_pages(const double* x, const double* y, int32_t count) {
  double mean_x = 0.0, mean_y = 0.0;
  for (int32_t i = 0; i < count; ++i) {
    mean_x += x[i] / count;
    mean_y += y[i] / count;
  }
  double xx = 0.0, xy = 0.0, yy = 0.0;
  for (int32_t i = 0; i < count; ++i) {
    xx += (x[i] - mean_x) * (x[i] - mean_x);
    xy += (x[i] - mean_x) * (y[i] - mean_y);
    yy += (y[i] - mean_y) * (y[i] - mean_y);
  }
  const double slope = count >= 3 && xx > 0.0 ? std::max(0.0, xy / xx) : 0.0;
  const double residual = count >= 3 ? std::max(0.0, yy - 2.0 * slope * xy + slope * slope * xx) / (count - 2) : 0.0;
  return {static_cast<float>(slope), static_cast<float>(mean_y - slope * mean_x + 0.5 * residual)};
}

TwoLevelSelector::TwoLevelSelector(const SelectorShape& shape, std::shared_ptr<const Selector> coarse,
                                   std::shared_ptr<const Selector> fine, double share, bool hard)
    : shape_(shape), coarse_(std::move(coarse)), fine_(std::move(fine)), share_(share), hard_(hard) {
  block_tokens_ = std::max(coarse_->block_tokens(), fine_->block_tokens());
  num_pages_ = block_tokens_ / coarse_->block_tokens();
  num_fine_ = block_tokens_ / fine_->block_tokens();
  // Entries of a multiple of 64 bytes are aligned to that.
  const bool aligned = coarse_->block_bytes() % 64 == 0 || fine_->block_bytes() % 64 == 0;
  fine_entry_offset_ = num_pages_ * coarse_->block_bytes();
  if (aligned) fine_entry_offset_ = round_up_to_line(fine_entry_offset_);
  block_bytes_ = fine_entry_offset_ + num_fine_ * fine_->block_bytes();
  if (aligned) block_bytes_ = round_up_to_line(block_bytes_);
  fine_trained_offset_ = round_up_to_line(coarse_->trained_bytes());
  fine_state_offset_ = static_cast<size_t>(round_up_to_line(static_cast<int64_t>(coarse_->query_state_bytes())));
}

std::string TwoLevelSelector::name() const {
  const std::string share = share_ == kDefaultShare ? "" : fmt::format("@{}", share_);
  return (hard_ ? "hard:" : "") + coarse_->name() + "+" + fine_->name() + share;
}

HeadId TwoLevelSelector::head_of(const Part& part, HeadId head) const {
  const bool trained = head.trained != nullptr && part.selector->trained_bytes() > 0;
  return {head.layer, head.kv_head, trained ? head.trained + part.trained_offset : nullptr};
}

int32_t TwoLevelSelector::first_key_read(int32_t first_new, int32_t num_tokens) const {
  int32_t first = first_new;
  for (const Part& part : {coarse_part(), fine_part()}) {
    const int32_t tokens = part.selector->block_tokens();
    const int32_t start = first_new / tokens * tokens;  // of the entry that is continued
    const int32_t in_entry = std::min(tokens, num_tokens - start);
    first = std::min(first, start + part.selector->first_key_read(first_new - start, in_entry));
    // Entries that begin after it read from their beginning at the earliest.
  }
  return first;
}

void TwoLevelSelector::encode(HeadId head, const BlockKeys& block, std::byte* entry) const {
  // What no token has reached yet is zero, not what lay there before.
  if (block.first_new == 0) std::memset(entry, 0, static_cast<size_t>(block_bytes_));
  for (const Part& part : {coarse_part(), fine_part()}) {
    const int32_t tokens = part.selector->block_tokens();
    for (int32_t i = block.first_new / tokens; i * tokens < block.num_tokens; ++i) {
      const int64_t offset = int64_t{i} * tokens * shape_.head_dim;
      BlockKeys keys;
      keys.keys = block.keys + offset;
      keys.num_tokens = std::min(tokens, block.num_tokens - i * tokens);
      keys.first_new = std::max(0, block.first_new - i * tokens);
      keys.values = block.values == nullptr ? nullptr : block.values + offset;
      part.selector->encode(head_of(part, head), keys, entry + part.entry_offset + i * part.selector->block_bytes());
    }
  }
}

int32_t TwoLevelSelector::training_tokens() const { return std::max(coarse_->training_tokens(), fine_->training_tokens()); }

Status TwoLevelSelector::train(HeadId head, const float* keys, int32_t num_tokens, std::byte* trained) const {
  for (const Part& part : {coarse_part(), fine_part()}) {
    if (part.selector->trained_bytes() == 0) continue;
    RAREFY_RETURN_IF_ERROR(part.selector->train(head, keys, std::min(num_tokens, part.selector->training_tokens()),
                                                trained + part.trained_offset));
  }
  return {};
}

void TwoLevelSelector::prepare(HeadId head, const float* q, std::byte* state) const {
  for (const Part& part : {coarse_part(), fine_part()}) {
    part.selector->prepare(head_of(part, head), q, state + part.state_offset);
  }
}

template <typename Body>
void TwoLevelSelector::run_part(const Part& part, bool bounds, const std::byte* state, const ScoreBlocks& blocks,
                                const int32_t* ids, int32_t count, Body body) const {
  std::array<const std::byte*, kRunPointers> entries;            // [pointers] pointers to [block_bytes] bytes
  std::array<const void*, kRunPointers> keys;                    // [pointers] pointers to [block_tokens, head_dim] kv_dtype
  alignas(64) std::array<float, kMaxGroup * kRunTokens> scores;  // [group, stride] f32
  const int32_t run = kRunTokens / block_tokens_;
  const int64_t key_bytes =
      part.selector->block_tokens() * blocks.key_token_stride * static_cast<int64_t>(size_of(shape_.kv_dtype));
  for (int32_t first = 0; first < count; first += run) {
    const int32_t here = std::min(run, count - first);
    // What comes next may be prefetched.
    const int32_t known = std::min(2 * here, count - first);
    for (int32_t i = 0, to = 0; i < known; ++i) {
      const int32_t block = ids == nullptr ? first + i : ids[first + i];
      for (int32_t j = 0; j < part.per_block; ++j, ++to) {
        entries[to] = blocks.entries[block] + part.entry_offset + j * part.selector->block_bytes();
        keys[to] = blocks.keys == nullptr ? nullptr : static_cast<const std::byte*>(blocks.keys[block]) + j * key_bytes;
      }
    }
    ScoreBlocks some;
    some.head = head_of(part, blocks.head);
    some.num_blocks = here * part.per_block;
    some.num_ahead = (known - here) * part.per_block;
    some.entries = entries.data();
    some.keys = blocks.keys == nullptr ? nullptr : keys.data();
    some.key_token_stride = blocks.key_token_stride;
    const int64_t stride = int64_t{here} * block_tokens_;
    if (bounds) {
      part.selector->bound(state + part.state_offset, some, scores.data(), stride);
    } else {
      part.selector->score(state + part.state_offset, some, scores.data(), stride);
    }
    for (int32_t i = 0; i < here; ++i) body(first + i, scores.data() + int64_t{i} * block_tokens_, stride);
  }
}

void TwoLevelSelector::survey(const std::byte* state, const ScoreBlocks& blocks, float* values) const {
  const int32_t page_tokens = coarse_->block_tokens();
  run_part(coarse_part(), false, state, blocks, nullptr, blocks.num_blocks,
           [&](int32_t block, const float* scores, int64_t stride) {
             float* to = values + int64_t{block} * survey_values();  // [num_pages, group] f32
             for (int32_t page = 0; page < num_pages_; ++page) {
               for (int32_t query = 0; query < shape_.group; ++query) {
                 *to++ = scores[query * stride + int64_t{page} * page_tokens];
               }
             }
           });
}

int32_t TwoLevelSelector::num_kept(int32_t num_blocks) const {
  return std::clamp(static_cast<int32_t>(std::ceil(share_ * num_blocks)), 1, std::max(1, num_blocks));
}

float TwoLevelSelector::block_key(const float* values, const float* log_sums, int32_t num_pages) const {
  float key = -kInfinity;
  for (int32_t page = 0; page < num_pages; ++page) {
    for (int32_t query = 0; query < shape_.group; ++query) {
      const float probability = values[page * shape_.group + query] - log_sums[query];
      key = probability > key ? probability : key;  // NaN never wins
    }
  }
  return key;
}

void TwoLevelSelector::settle(std::byte* state, const Survey& survey) const {
  const int32_t page_tokens = coarse_->block_tokens(), group = shape_.group;
  const int32_t num_pages = (survey.num_tokens + page_tokens - 1) / page_tokens;
  const auto pages_of = [&](int32_t block) { return std::min(num_pages_, num_pages - block * num_pages_); };
  const auto padded = static_cast<size_t>(std::max(num_pages, survey.num_blocks)) + cpu::kCandidatePadding;
  std::vector<float> column(padded), keys(padded);  // [num_pages, padded] f32; [num_blocks, padded] f32
  std::array<float, kMaxGroup> log_sums{};          // [group] f32
  for (int32_t query = 0; query < group; ++query) {
    for (int32_t page = 0; page < num_pages; ++page)
      column[static_cast<size_t>(page)] = survey.values[int64_t{page} * group + query];
    log_sums[query] = cpu::log_sum_exp(column.data(), num_pages);
  }
  for (int32_t block = 0; block < survey.num_blocks; ++block) {
    keys[static_cast<size_t>(block)] =
        block_key(survey.values + int64_t{block} * survey_values(), log_sums.data(), pages_of(block));
  }
  std::copy_n(keys.begin(), survey.num_blocks, column.begin());
  const float cut = cpu::nth_largest(column.data(), survey.num_blocks, num_kept(survey.num_blocks));

  std::array<PageFit, kMaxGroup> fits;  // [group]
  if (!hard_) fit(state, survey, cut, log_sums.data(), fits.data());
  for (int32_t block = 0; block < survey.num_blocks; ++block) {
    float* values = survey.values + int64_t{block} * survey_values();  // [num_pages, group] f32
    if (!(keys[static_cast<size_t>(block)] < cut)) {
      values[0] = kKept;
      continue;
    }
    for (int32_t i = 0; i < survey_values(); ++i) {
      const PageFit& map = fits[static_cast<size_t>(i % group)];
      values[i] = hard_ ? kDropped : map.intercept + map.slope * values[i];
      if (std::isnan(values[i])) values[i] = kDropped;
    }
  }
}

void TwoLevelSelector::fit(const std::byte* state, const Survey& survey, float cut, const float* log_sums,
                           PageFit* fits) const {
  const ScoreBlocks& sample = survey.sample;
  if (sample.num_blocks == 0) return;
  const int32_t page_tokens = coarse_->block_tokens();
  // Every k-th block of the sample, those that are not kept; all of them when too few are left.
  const int32_t step = std::max(1, (sample.num_blocks * block_tokens_ + kFitTokens - 1) / kFitTokens);
  std::vector<int32_t> all, outside;  // [count] i32; numbers within the sample
  for (int32_t i = 0; i < sample.num_blocks; i += step) {
    all.push_back(i);
    if (block_key(sample.survey + i * sample.survey_stride, log_sums, num_pages_) < cut) outside.push_back(i);
  }
  constexpr size_t kFewBlocks = 4;
  const std::vector<int32_t>& used = outside.size() < kFewBlocks ? all : outside;
  const size_t num_pages = used.size() * num_pages_;
  std::vector<double> x(num_pages * shape_.group), y(x.size());  // [group, num_pages] f64
  const auto count = static_cast<int32_t>(used.size());
  run_part(fine_part(), false, state, sample, used.data(), count, [&](int32_t i, const float* scores, int64_t stride) {
    const float* values = sample.survey + used[static_cast<size_t>(i)] * sample.survey_stride;  // [num_pages, group] f32
    for (int32_t query = 0; query < shape_.group; ++query) {
      for (int32_t page = 0; page < num_pages_; ++page) {
        const size_t to = static_cast<size_t>(query) * num_pages + static_cast<size_t>(i) * num_pages_ + page;
        x[to] = double{values[page * shape_.group + query]};
        y[to] = double{cpu::log_sum_exp(scores + query * stride + int64_t{page} * page_tokens, page_tokens)} -
                std::log(static_cast<double>(page_tokens));
      }
    }
  });
  for (int32_t query = 0; query < shape_.group; ++query) {
    fits[query] = fit_pages(&x[static_cast<size_t>(query) * num_pages], &y[static_cast<size_t>(query) * num_pages],
                            static_cast<int32_t>(num_pages));
  }
}

void TwoLevelSelector::score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const {
  const int32_t page_tokens = coarse_->block_tokens();
  std::array<int32_t, kMaxRunBlocks> kept;  // [num_kept] i32; numbers of blocks
  for (int32_t first = 0; first < blocks.num_blocks; first += kMaxRunBlocks) {
    int32_t num_kept = 0;
    for (int32_t block = first; block < std::min(first + kMaxRunBlocks, blocks.num_blocks); ++block) {
      const float* values = blocks.survey + block * blocks.survey_stride;  // [num_pages, group] f32
      if (std::isnan(values[0])) {
        kept[num_kept++] = block;
        continue;
      }
      for (int32_t query = 0; query < shape_.group; ++query) {
        float* to = scores + query * score_stride + int64_t{block} * block_tokens_;
        for (int32_t page = 0; page < num_pages_; ++page) {
          std::fill_n(to + int64_t{page} * page_tokens, page_tokens, values[page * shape_.group + query]);
        }
      }
    }
    run_part(fine_part(), false, state, blocks, kept.data(), num_kept, [&](int32_t i, const float* from, int64_t stride) {
      for (int32_t query = 0; query < shape_.group; ++query) {
        std::copy_n(from + query * stride, block_tokens_, scores + query * score_stride + int64_t{kept[i]} * block_tokens_);
      }
    });
  }
}

void TwoLevelSelector::bound(const std::byte* state, const ScoreBlocks& blocks, float* bounds, int64_t bound_stride) const {
  const Part part = fine_->has_bounds() ? fine_part() : coarse_part();
  run_part(part, true, state, blocks, nullptr, blocks.num_blocks, [&](int32_t i, const float* from, int64_t stride) {
    for (int32_t query = 0; query < shape_.group; ++query) {
      std::copy_n(from + query * stride, block_tokens_, bounds + query * bound_stride + int64_t{i} * block_tokens_);
    }
  });
}

void TwoLevelSelector::value_bounds(const ScoreBlocks& blocks, float* norms) const {
  const Part part = fine_->has_bounds() ? fine_part() : coarse_part();
  for (int32_t block = 0; block < blocks.num_blocks; ++block) {
    norms[block] = 0.0f;
    for (int32_t j = 0; j < part.per_block; ++j) {
      const std::byte* entry = blocks.entries[block] + part.entry_offset + j * part.selector->block_bytes();
      ScoreBlocks one;
      one.head = head_of(part, blocks.head);
      one.num_blocks = 1;
      one.entries = &entry;
      float norm = 0.0f;
      part.selector->value_bounds(one, &norm);
      norms[block] = std::max(norms[block], norm);
    }
  }
}

namespace {

constexpr std::string_view kHard = "hard:";

}  // namespace

bool is_two_level_text(std::string_view text) {
  return text.starts_with(kHard) || text == "hard" || text.find('+') != std::string_view::npos;
}

TwoLevelText split_two_level_text(std::string_view text) {
  TwoLevelText parts;
  parts.hard = text.starts_with(kHard);
  if (parts.hard) text.remove_prefix(kHard.size());
  const size_t plus = text.find('+');
  parts.coarse = text.substr(0, plus);
  if (plus == std::string_view::npos) return parts;
  parts.fine = text.substr(plus + 1);
  const size_t at = parts.fine.find('@');
  if (at == std::string_view::npos) return parts;
  parts.share = parts.fine.substr(at + 1);
  parts.fine = parts.fine.substr(0, at);
  return parts;
}

Expected<std::shared_ptr<const Selector>> make_two_level_selector(const SelectorShape& shape, std::string_view text) {
  const TwoLevelText parts = split_two_level_text(text);
  const auto bad = [&](const std::string& what) {
    return Status::invalid_argument("selector: '" + std::string(text) + "': " + what);
  };
  constexpr const char* kForm =
      "expected COARSE+FINE or hard:COARSE+FINE, with @SHARE behind it or not, like quest32:int4+sign@0.2";
  if (parts.coarse.empty() || parts.fine.empty() || is_two_level_text(parts.fine)) return bad(kForm);
  double share = kDefaultShare;
  if (text.find('@') != std::string_view::npos) {
    const char* end = parts.share.data() + parts.share.size();
    const auto [at, error] = std::from_chars(parts.share.data(), end, share);
    if (error != std::errc() || at != end || !(share > 0.0 && share <= 1.0)) {
      return bad("expected a share of the blocks above 0 and up to 1 after @, got '" + std::string(parts.share) + "'");
    }
  }
  RAREFY_ASSIGN_OR_RETURN(auto coarse, make_selector(parts.coarse, shape));
  RAREFY_ASSIGN_OR_RETURN(auto fine, make_selector(parts.fine, shape));
  if (!coarse->scores_blocks()) {
    return bad("the first selector must give all tokens of a block one score, as quest16 and quest32 do; got " +
               coarse->name());
  }
  if (coarse->survey_values() > 0 || fine->survey_values() > 0 || fine->is_hard_filter()) return bad(kForm);
  const int32_t coarse_tokens = coarse->block_tokens(), fine_tokens = fine->block_tokens();
  if (std::max(coarse_tokens, fine_tokens) % std::min(coarse_tokens, fine_tokens) != 0) {
    return bad("the blocks of one selector must hold whole blocks of the other; got blocks of " +
               std::to_string(coarse_tokens) + " and " + std::to_string(fine_tokens) + " tokens");
  }
  return std::make_shared<const TwoLevelSelector>(shape, std::move(coarse), std::move(fine), share, parts.hard);
}

}  // namespace rarefy
