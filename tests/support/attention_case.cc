#include "tests/support/attention_case.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>

#include "rarefy/core/rng.h"

namespace rarefy::test {
namespace {

constexpr double kEps = 0x1p-24;
constexpr double kSlack = 4.0;
// c_i^2 leaves the range of f32 where c_i is below 1e-19 of the largest: an error estimate that small may be 0.
constexpr double kUnderflow = 0x1p-58;
constexpr int32_t kSparePages = 3;  // never in a page table: stay NaN

double eps_of(DType dtype) { return dtype == DType::f32 ? 0x1p-24 : dtype == DType::f16 ? 0x1p-11 : 0x1p-8; }

const char* name_of(KvLayout layout) {
  return layout == KvLayout::nhd ? "nhd" : layout == KvLayout::hnd ? "hnd" : "head_major";
}

}  // namespace

std::string AttentionCase::to_string() const {
  std::ostringstream text;
  text << "num_q_heads=" << num_q_heads << " num_kv_heads=" << num_kv_heads << " head_dim=" << head_dim
       << " q_dtype=" << rarefy::to_string(q_dtype) << " kv_dtype=" << rarefy::to_string(kv_dtype)
       << " out_dtype=" << rarefy::to_string(out_dtype) << " page_size=" << page_size << " num_queries=" << num_queries
       << " kv_len=";
  for (size_t i = 0; i < kv_lens.size(); ++i) text << (i == 0 ? "" : ",") << kv_lens[i];
  text << " layout=" << name_of(layout) << " scope=" << (scope == ListScope::kv_head ? "kv_head" : "query_head")
       << " density=" << density << " log_weights=" << log_weights << " all_tokens=" << all_tokens
       << " dense_fallback=" << dense_fallback << " logit_soft_cap=" << logit_soft_cap << " sink_logit=" << sink_logit
       << " sliding_window=" << sliding_window << " kv_scales=" << kv_scales << " logit_spread=" << logit_spread
       << " seed=" << seed;
  return text.str();
}

uint32_t RandomStream::bits() {
  const auto block = philox4x32({static_cast<uint32_t>(counter_), static_cast<uint32_t>(counter_ >> 32), 0, 0},
                                {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
  ++counter_;
  return block[0];
}

double RandomStream::uniform() { return bits() * 0x1p-32; }

double RandomStream::normal() {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return radius * std::cos(6.283185307179586 * uniform());
}

AttentionData::AttentionData(const AttentionCase& description, DecodeOp op) : case_(description), op_(op) {
  RandomStream random(case_.seed);
  const size_t elements = static_cast<size_t>(num_rows()) * static_cast<size_t>(case_.head_dim);
  // Logits have standard deviation |scale| * sqrt(head_dim) for standard normal q and k.
  scale = case_.logit_spread / std::sqrt(static_cast<float>(case_.head_dim));
  q = GuardedBuffer<unsigned char>(elements * size_of(case_.q_dtype));
  out = GuardedBuffer<unsigned char>(elements * size_of(case_.out_dtype), size_of(case_.out_dtype));
  for (size_t i = 0; i < elements; ++i) {
    store_from_float(q.data(), case_.q_dtype, static_cast<int64_t>(i), static_cast<float>(random.normal()));
  }
  lse = GuardedBuffer<float>(static_cast<size_t>(num_rows()), 1);
  rel_std = GuardedBuffer<float>(static_cast<size_t>(num_rows()), 1);
  out_rel_std = GuardedBuffer<float>(static_cast<size_t>(num_rows()), 1);
  sinks = GuardedBuffer<float>(static_cast<size_t>(case_.num_q_heads));
  for (size_t i = 0; i < sinks.size(); ++i) sinks[i] = static_cast<float>(random.normal());
  make_cache(random);
  if (case_.kv_scales) {
    key_scales = GuardedBuffer<float>(static_cast<size_t>(case_.num_kv_heads));
    value_scales = GuardedBuffer<float>(static_cast<size_t>(case_.num_kv_heads));
    for (size_t i = 0; i < key_scales.size(); ++i) {
      key_scales[i] = static_cast<float>(0.5 + random.uniform());
      value_scales[i] = static_cast<float>(0.5 + random.uniform());
    }
    kv_.key_scales = key_scales.data();
    kv_.value_scales = value_scales.data();
  }
  if (op_ == DecodeOp::sparse) make_lists(random);
}

void AttentionData::make_cache(RandomStream& random) {
  const int32_t longest = *std::max_element(case_.kv_lens.begin(), case_.kv_lens.end());
  const int32_t max_pages = (longest + case_.page_size - 1) / case_.page_size + 1;
  int32_t num_pages = kSparePages;
  for (int32_t kv_len : case_.kv_lens) num_pages += (kv_len + case_.page_size - 1) / case_.page_size;

  kv_.dtype = case_.kv_dtype;
  kv_.page_size = case_.page_size;
  kv_.num_kv_heads = case_.num_kv_heads;
  kv_.head_dim = case_.head_dim;
  kv_.num_pages = num_pages;
  kv_.max_pages_per_sequence = max_pages;
  const int64_t dim = case_.head_dim, heads = case_.num_kv_heads, page = case_.page_size;
  switch (case_.layout) {
    case KvLayout::nhd: kv_.token_stride = heads * dim, kv_.head_stride = dim, kv_.page_stride = page * heads * dim; break;
    case KvLayout::hnd: kv_.token_stride = dim, kv_.head_stride = page * dim, kv_.page_stride = page * heads * dim; break;
    case KvLayout::head_major:
      kv_.token_stride = dim, kv_.head_stride = num_pages * page * dim, kv_.page_stride = page * dim;
      break;
  }
  const size_t bytes = static_cast<size_t>(num_pages * page * heads * dim) * size_of(case_.kv_dtype);
  keys = GuardedBuffer<unsigned char>(bytes, size_of(case_.kv_dtype));  // misaligned rows
  values = GuardedBuffer<unsigned char>(bytes, size_of(case_.kv_dtype));

  std::vector<int32_t> free_pages(static_cast<size_t>(num_pages));
  std::iota(free_pages.begin(), free_pages.end(), 0);
  for (size_t i = free_pages.size(); i > 1; --i)
    std::swap(free_pages[i - 1], free_pages[static_cast<size_t>(random.below(static_cast<int32_t>(i)))]);
  page_table = GuardedBuffer<int32_t>(static_cast<size_t>(case_.batch()) * static_cast<size_t>(max_pages));
  lens = GuardedBuffer<int32_t>(static_cast<size_t>(case_.batch()));
  size_t next = 0;
  for (int32_t sequence = 0; sequence < case_.batch(); ++sequence) {
    const int32_t kv_len = case_.kv_lens[static_cast<size_t>(sequence)];
    lens[static_cast<size_t>(sequence)] = kv_len;
    for (int32_t p = 0; p < (kv_len + case_.page_size - 1) / case_.page_size; ++p) {
      page_table[static_cast<size_t>(sequence * max_pages + p)] = free_pages[next++];
    }
  }
  kv_.keys = keys.data();
  kv_.values = values.data();
  kv_.page_table = page_table.data();
  kv_.kv_lens = lens.data();
  if (op_ == DecodeOp::sparse) return;  // make_lists writes the selected rows only
  for (int32_t sequence = 0; sequence < case_.batch(); ++sequence) {
    const int32_t kv_len = lens[static_cast<size_t>(sequence)];
    const int32_t first = case_.sliding_window > 0 ? std::max(0, kv_len - case_.num_queries + 1 - case_.sliding_window) : 0;
    for (int32_t token = first; token < kv_len; ++token) {
      for (int32_t head = 0; head < case_.num_kv_heads; ++head) write_row(sequence, token, head);
    }
  }
}

// A row's content depends on (seed, sequence, token, head) only: the same row in every layout, page size and batch mix.
void AttentionData::write_row(int32_t sequence, int32_t token, int32_t kv_head) {
  RandomStream random(
      case_.seed * 1000003 +
      (static_cast<uint64_t>(sequence) << 48 ^ static_cast<uint64_t>(token) << 8 ^ static_cast<uint64_t>(kv_head)) + 17);
  const int64_t offset = kv_.row_offset(sequence, token, kv_head);
  for (int32_t d = 0; d < case_.head_dim; ++d) {
    store_from_float(keys.data(), case_.kv_dtype, offset + d, static_cast<float>(random.normal()));
    store_from_float(values.data(), case_.kv_dtype, offset + d, static_cast<float>(random.normal()));
  }
}

void AttentionData::make_lists(RandomStream& random) {
  num_lists_ = case_.scope == ListScope::kv_head ? case_.num_kv_heads : case_.num_q_heads;
  const int32_t lists_per_kv_head = num_lists_ / case_.num_kv_heads;
  max_selected_ = *std::max_element(case_.kv_lens.begin(), case_.kv_lens.end());
  const size_t lists = static_cast<size_t>(case_.batch()) * static_cast<size_t>(num_lists_);
  token_ids = GuardedBuffer<int32_t>(lists * static_cast<size_t>(max_selected_));
  log_weight = GuardedBuffer<float>(lists * static_cast<size_t>(max_selected_));
  counts = GuardedBuffer<int32_t>(lists);
  for (int32_t row = 0; row < static_cast<int32_t>(lists); ++row) {
    const int32_t sequence = row / num_lists_;
    const int32_t kv_len = lens[static_cast<size_t>(sequence)];
    const int32_t kv_head = row % num_lists_ / lists_per_kv_head;
    const bool fallback = case_.dense_fallback && row % 3 == 0;
    const double density = case_.all_tokens || fallback ? 2.0 : case_.density * (0.5 + random.uniform());
    const size_t first = static_cast<size_t>(row) * static_cast<size_t>(max_selected_);
    int32_t count = 0;
    for (int32_t token = 0; token < kv_len; ++token) {
      if (random.uniform() >= density) continue;
      write_row(sequence, token, kv_head);
      if (fallback) continue;
      token_ids[first + static_cast<size_t>(count)] = token;
      const bool sampled = case_.log_weights && !case_.all_tokens && random.uniform() < 0.5;
      log_weight[first + static_cast<size_t>(count)] = sampled ? static_cast<float>(3.0 * random.uniform()) : 0.0f;
      ++count;
    }
    counts[static_cast<size_t>(row)] = fallback ? kAllTokens : count;
  }
}

DecodeProblem AttentionData::decode_problem() const {
  DecodeProblem problem;
  problem.num_q_heads = case_.num_q_heads;
  problem.num_kv_heads = case_.num_kv_heads;
  problem.head_dim = case_.head_dim;
  problem.q_dtype = case_.q_dtype;
  problem.kv_dtype = case_.kv_dtype;
  problem.out_dtype = case_.out_dtype;
  problem.page_size = case_.page_size;
  problem.num_queries = case_.num_queries;
  problem.scope = case_.scope;
  problem.logit_soft_cap = case_.logit_soft_cap;
  problem.sliding_window = case_.sliding_window;
  problem.sink_logit = case_.sink_logit;
  problem.max_batch = case_.batch();
  problem.max_selected = max_selected_;
  return problem;
}

DecodeArgs AttentionData::decode_args() {
  DecodeArgs args;
  args.batch = case_.batch();
  args.scale = scale;
  args.q = q.data();
  args.kv = kv_;
  args.out = out.data();
  args.lse = lse.data();
  args.sink_logits = case_.sink_logit ? sinks.data() : nullptr;
  if (op_ == DecodeOp::sparse) {
    args.index = {token_ids.data(), counts.data(), case_.log_weights ? log_weight.data() : nullptr, num_lists_,
                  max_selected_};
    args.rel_std = rel_std.data();
    args.out_rel_std = out_rel_std.data();
  }
  return args;
}

PrefillProblem AttentionData::prefill_problem() const {
  PrefillProblem problem;
  problem.num_q_heads = case_.num_q_heads;
  problem.num_kv_heads = case_.num_kv_heads;
  problem.head_dim = case_.head_dim;
  problem.q_dtype = case_.q_dtype;
  problem.kv_dtype = case_.kv_dtype;
  problem.out_dtype = case_.out_dtype;
  problem.page_size = case_.page_size;
  problem.logit_soft_cap = case_.logit_soft_cap;
  problem.sliding_window = case_.sliding_window;
  problem.max_new_tokens = case_.num_queries;
  return problem;
}

PrefillArgs AttentionData::prefill_args() {
  PrefillArgs args;
  args.num_new = case_.num_queries;
  args.scale = scale;
  args.q = q.data();
  args.kv = kv_;
  args.out = out.data();
  args.lse = lse.data();
  return args;
}

void* AttentionData::reserve_workspace(std::size_t bytes) {
  workspace_ = GuardedBuffer<unsigned char>(bytes);
  return workspace_.data();
}

void AttentionData::poison_outputs() {
  out.poison();
  lse.poison();
  rel_std.poison();
  out_rel_std.poison();
}

::testing::AssertionResult AttentionData::guards_intact() const {
  const bool intact = out.intact() && lse.intact() && rel_std.intact() && out_rel_std.intact() && keys.intact() &&
                      values.intact() && q.intact() && (workspace_.size() == 0 || workspace_.intact());
  return intact ? ::testing::AssertionSuccess() : ::testing::AssertionFailure() << "a guard band was written";
}

std::vector<float> AttentionData::out_values() const {
  std::vector<float> result(static_cast<size_t>(num_rows()) * static_cast<size_t>(case_.head_dim));
  for (size_t i = 0; i < result.size(); ++i)
    result[i] = load_as_float(out.data(), case_.out_dtype, static_cast<int64_t>(i));
  return result;
}

double weight_rounding(const std::string& implementation, DType q_dtype) {
  // f16 weights are scaled by 2^12, so that those which matter are normal numbers.
  if (implementation.starts_with("cuda")) return eps_of(q_dtype);
  return implementation.find("bf16") != std::string::npos ? eps_of(DType::bf16) : 0.0;
}

::testing::AssertionResult matches_oracle(const Got& got, const ref::AttentionResult& expected, int32_t head_dim,
                                          DType out_dtype, int32_t longest_list, double weight_rounding,
                                          double variance_floor) {
  const double log_length = std::log2(longest_list + 1.0);
  double worst = 0.0;
  std::string worst_cell = "none";
  const auto compare = [&](double value, double reference, double bound, const char* name, size_t row, size_t d) {
    if (std::isinf(reference) && value == reference) return;
    double share = std::abs(value - reference) / bound;
    if (value == reference) share = 0.0;
    if (!(share <= worst)) {  // NaN ends here too
      worst = std::isnan(share) ? INFINITY : share;
      std::ostringstream cell;
      cell << name << "[" << row << "][" << d << "]: got " << value << ", expected " << reference << ", bound " << bound;
      worst_cell = cell.str();
    }
  };
  for (size_t row = 0; row < expected.lse.size(); ++row) {
    const double logit_scale = expected.logit_scale[row];
    const double rounding = kSlack * kEps * (8.0 + log_length + 2.0 * logit_scale) + 2.0 * weight_rounding;
    for (size_t d = 0; d < static_cast<size_t>(head_dim); ++d) {
      const size_t i = row * static_cast<size_t>(head_dim) + d;
      // f16 and bf16 outputs below their smallest normal number round on a fixed grid.
      const double grid = out_dtype == DType::f16 ? 0x1p-25 : 0.0;
      compare(got.out[i], expected.out[i],
              eps_of(out_dtype) * std::abs(expected.out[i]) + rounding * expected.condition[i] + grid, "out", row, d);
    }
    if (got.lse != nullptr) {
      compare(got.lse[row], expected.lse[row],
              kSlack * kEps * (8.0 + log_length + logit_scale + std::abs(expected.lse[row])) + weight_rounding, "lse", row,
              0);
    }
    if (got.rel_std != nullptr) {
      compare(got.rel_std[row], expected.rel_std[row],
              2.0 * rounding * expected.rel_std[row] + kUnderflow + std::sqrt(variance_floor * longest_list), "rel_std",
              row, 0);
    }
    if (got.out_rel_std != nullptr) {
      const double square = expected.out_rel_std[row] * expected.out_rel_std[row];
      double out_norm2 = 0.0;  // values are standard normal: |v - out|^2 stays below 4 head_dim
      for (size_t d = 0; d < static_cast<size_t>(head_dim); ++d) {
        const double out = expected.out[row * static_cast<size_t>(head_dim) + d];
        out_norm2 += out * out;
      }
      const double vanished = variance_floor > 0.0 ? variance_floor * longest_list * 4.0 * head_dim / out_norm2 : 0.0;
      compare(static_cast<double>(got.out_rel_std[row]) * got.out_rel_std[row], square,
              2.0 * rounding * expected.spread_scale[row] + 4.0 * kEps * square + kUnderflow * kUnderflow + vanished,
              "out_rel_std^2", row, 0);
    }
  }
  static double worst_of_test = 0.0;
  static const ::testing::TestInfo* test = nullptr;
  const ::testing::TestInfo* current = ::testing::UnitTest::GetInstance()->current_test_info();
  if (current != test) worst_of_test = 0.0;
  test = current;
  worst_of_test = std::max(worst_of_test, worst);
  ::testing::Test::RecordProperty("worst_share", std::to_string(worst_of_test));
  if (worst <= 1.0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "worst cell at " << worst << " of its bound: " << worst_cell;
}

}  // namespace rarefy::test
