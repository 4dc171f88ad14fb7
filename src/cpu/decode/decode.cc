#include "cpu/decode/decode.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "cpu/decode/tile.h"
#include "hwy/targets.h"

namespace rarefy::cpu {
namespace {

constexpr int32_t kMaxSplits = 16;
// Shorter parts than this spend more on starting and merging than they gain.
constexpr int32_t kMinSplitTokens = 256;
// Below this many bytes of rows one thread is done before a second has woken up.
constexpr int64_t kParallelBytes = 64 << 10;

struct Split {
  int32_t count = 0;  // parts
  int32_t tokens = 0; // tokens of each part but the last
};

Split split_tokens(int32_t num_tokens) {
  if (num_tokens <= 0) return {};
  const int32_t wanted = std::min(kMaxSplits, (num_tokens + kMinSplitTokens - 1) / kMinSplitTokens);
  const int32_t tokens = ((num_tokens + wanted - 1) / wanted + kTileTokens - 1) / kTileTokens * kTileTokens;
  return {(num_tokens + tokens - 1) / tokens, tokens};
}

// The tokens of one list.
struct List {
  int32_t num_tokens = 0;
  const int32_t* token_ids = nullptr;  // [num_tokens] i32; null = 0, 1, 2, ...
  const float* log_weight = nullptr;   // [num_tokens] f32; nullable
};

// Row addresses of one tile.
struct Pointers {
  const void* keys[kTileTokens];    // [kTileTokens] pointers to [head_dim] kv_dtype
  const void* values[kTileTokens];  // [kTileTokens] pointers to [head_dim] kv_dtype
  int32_t tokens[kTileTokens];
};

class CpuDecode final : public DecodeKernel {
 public:
  CpuDecode(DecodeOp op, const DecodeProblem& problem, const TileFunctions& functions)
      : op_(op), problem_(problem), functions_(functions) {
    const int32_t group = problem.num_q_heads / problem.num_kv_heads;
    const bool per_kv_head = op == DecodeOp::dense || problem.scope == ListScope::kv_head;
    num_lists_ = per_kv_head ? problem.num_kv_heads : problem.num_q_heads;
    heads_per_list_ = per_kv_head ? group : 1;
    lists_per_kv_head_ = num_lists_ / problem.num_kv_heads;
    num_rows_ = heads_per_list_ * problem.num_queries;
    const int64_t row_floats = int64_t{num_rows_} * problem.head_dim;
    const int64_t stats_floats = (int64_t{num_rows_} * kRowStats + 15) / 16 * 16;
    spread_offset_ = row_floats;
    stats_offset_ = row_floats * (op == DecodeOp::sparse ? 2 : 1);
    split_stride_ = stats_offset_ + stats_floats;
    q_floats_ = int64_t{problem.max_batch} * num_lists_ * row_floats;
  }

  std::size_t workspace_bytes() const override {
    const int64_t partial_floats = int64_t{problem_.max_batch} * num_lists_ * kMaxSplits * split_stride_;
    return static_cast<std::size_t>(q_floats_ + partial_floats) * sizeof(float);
  }

  Status run(const DecodeArgs& args, Stream) const override {
    const int32_t num_items = args.batch * num_lists_;
    int64_t bytes = 0;
    for (int32_t item = 0; item < num_items; ++item) {
      bytes += int64_t{list_of(args, item).num_tokens} * problem_.head_dim * static_cast<int64_t>(size_of(args.kv.dtype)) * 2;
    }
    const int32_t threads = bytes < kParallelBytes ? 1 : num_threads();
    // Splits of one item are neighbours in the loop: its rows are close in memory and its queries stay in the cache.
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
      for (int32_t item = 0; item < num_items; ++item) prepare_queries(args, item);
#pragma omp for schedule(dynamic, 1)
      for (int32_t work = 0; work < num_items * kMaxSplits; ++work) attend_split(args, work / kMaxSplits, work % kMaxSplits);
#pragma omp for schedule(static)
      for (int32_t item = 0; item < num_items; ++item) finish(args, item);
    }
    return {};
  }

 private:
  List list_of(const DecodeArgs& args, int32_t item) const {
    const int32_t kv_len = args.kv.kv_lens[item / num_lists_];
    if (op_ == DecodeOp::dense) return {kv_len, nullptr, nullptr};
    const int32_t count = args.index.counts[item];
    if (count == kAllTokens) return {kv_len, nullptr, nullptr};
    const int64_t first = int64_t{item} * args.index.max_selected;
    return {count, args.index.token_ids + first, args.index.log_weight == nullptr ? nullptr : args.index.log_weight + first};
  }

  // Row of q, out and lse that belongs to row `row` of an item.
  int64_t row_index(int32_t item, int32_t row) const {
    const int32_t sequence = item / num_lists_, list = item % num_lists_;
    const int32_t query = row / heads_per_list_, head = list * heads_per_list_ + row % heads_per_list_;
    return (int64_t{sequence} * problem_.num_queries + query) * problem_.num_q_heads + head;
  }

  float* prepared_q(const DecodeArgs& args, int32_t item) const {
    return static_cast<float*>(args.workspace) + int64_t{item} * num_rows_ * problem_.head_dim;
  }
  float* partial(const DecodeArgs& args, int32_t item, int32_t split) const {
    return static_cast<float*>(args.workspace) + q_floats_ + (int64_t{item} * kMaxSplits + split) * split_stride_;
  }

  void prepare_queries(const DecodeArgs& args, int32_t item) const {
    for (int32_t row = 0; row < num_rows_; ++row) {
      const int64_t first = row_index(item, row) * problem_.head_dim;
      float converted[256];  // [head_dim] f32
      const float* q = converted;
      if (problem_.q_dtype == DType::f32) {
        q = static_cast<const float*>(args.q) + first;
      } else {
        for (int32_t d = 0; d < problem_.head_dim; ++d) converted[d] = load_as_float(args.q, problem_.q_dtype, first + d);
      }
      functions_.prepare_q(args.kv.dtype, q, problem_.head_dim,
                           prepared_q(args, item) + int64_t{row} * problem_.head_dim);
    }
  }

  int32_t find_rows(const DecodeArgs& args, int32_t item, const List& list, int32_t first, int32_t last,
                    Pointers& pointers) const {
    const PagedKvView& kv = args.kv;
    const int32_t sequence = item / num_lists_;
    const int32_t* pages = kv.page_table + int64_t{sequence} * kv.max_pages_per_sequence;  // [max_pages_per_sequence] i32
    const int64_t head_offset = (item % num_lists_) / lists_per_kv_head_ * kv.head_stride;
    const int page_shift = std::countr_zero(static_cast<uint32_t>(kv.page_size));
    const auto element_bytes = static_cast<int64_t>(size_of(kv.dtype));
    const auto* keys = static_cast<const char*>(kv.keys);
    const auto* values = static_cast<const char*>(kv.values);
    const int32_t count = std::min(kTileTokens, last - first);
    const auto page_offset = [&](int32_t token) {
      return (pages[token >> page_shift] * kv.page_stride + head_offset) * element_bytes;
    };
    const int64_t token_bytes = kv.token_stride * element_bytes;
    const int32_t page_mask = kv.page_size - 1;
    if (list.token_ids != nullptr) {
      for (int32_t i = 0; i < count; ++i) {
        const int32_t token = list.token_ids[first + i];
        const int64_t offset = page_offset(token) + (token & page_mask) * token_bytes;
        pointers.keys[i] = keys + offset;
        pointers.values[i] = values + offset;
        pointers.tokens[i] = token;
      }
    } else {
      for (int32_t i = 0; i < count;) {
        const int32_t token = first + i;
        int64_t offset = page_offset(token) + (token & page_mask) * token_bytes;
        const int32_t end = std::min(count, i + kv.page_size - (token & page_mask));
        for (; i < end; ++i, offset += token_bytes) {
          pointers.keys[i] = keys + offset;
          pointers.values[i] = values + offset;
          pointers.tokens[i] = first + i;
        }
      }
    }
    for (int32_t i = count; i < kTileTokens; ++i) {
      pointers.keys[i] = pointers.keys[count - 1];
      pointers.values[i] = pointers.values[count - 1];
    }
    return count;
  }

  void attend_split(const DecodeArgs& args, int32_t item, int32_t split) const {
    const List list = list_of(args, item);
    const Split parts = split_tokens(list.num_tokens);
    if (split >= parts.count) return;
    int32_t last_visible[kMaxTileRows];
    const int32_t kv_len = args.kv.kv_lens[item / num_lists_];
    for (int32_t row = 0; row < num_rows_; ++row) last_visible[row] = kv_len - problem_.num_queries + row / heads_per_list_;

    float* memory = partial(args, item, split);
    const bool with_variance = list.log_weight != nullptr && (args.rel_std != nullptr || args.out_rel_std != nullptr);
    Partial sums;
    sums.sum = memory;
    sums.spread = with_variance && args.out_rel_std != nullptr ? memory + spread_offset_ : nullptr;
    sums.stats = memory + stats_offset_;
    functions_.start(num_rows_, problem_.head_dim, sums);

    int32_t first = split * parts.tokens;
    const int32_t last = std::min(list.num_tokens, first + parts.tokens);
    Pointers buffers[2];
    int32_t now = 0;
    int32_t count = find_rows(args, item, list, first, last, buffers[now]);
    while (count > 0) {
      const int32_t next_first = first + count;
      const int32_t next_count = next_first < last ? find_rows(args, item, list, next_first, last, buffers[1 - now]) : 0;
      Tile tile;
      tile.kv_dtype = args.kv.dtype;
      tile.num_rows = num_rows_;
      tile.head_dim = problem_.head_dim;
      tile.num_tokens = count;
      tile.scale = args.scale;
      tile.q_is_bf16 = problem_.q_dtype == DType::bf16;
      tile.q = prepared_q(args, item);
      tile.keys = buffers[now].keys;
      tile.values = buffers[now].values;
      if (next_count > 0) {
        tile.next_keys = buffers[1 - now].keys;
        tile.next_values = buffers[1 - now].values;
      }
      tile.log_weight = list.log_weight != nullptr ? list.log_weight + first : nullptr;
      if (problem_.num_queries > 1) {
        tile.token_ids = buffers[now].tokens;
        tile.last_visible = last_visible;
      }
      tile.soft_cap = problem_.logit_soft_cap;
      tile.with_variance = with_variance;
      functions_.add_tile(tile, sums);
      first = next_first;
      count = next_count;
      now = 1 - now;
    }
  }

  void finish(const DecodeArgs& args, int32_t item) const {
    const List list = list_of(args, item);
    const bool with_spread = list.log_weight != nullptr && args.out_rel_std != nullptr;
    const float* memory = partial(args, item, 0);
    for (int32_t row = 0; row < num_rows_; ++row) {
      const int64_t index = row_index(item, row);
      FinishRow finish;
      finish.kv_dtype = args.kv.dtype;
      finish.head_dim = problem_.head_dim;
      finish.num_splits = split_tokens(list.num_tokens).count;
      finish.sum = memory + int64_t{row} * problem_.head_dim;
      finish.spread = with_spread ? memory + spread_offset_ + int64_t{row} * problem_.head_dim : nullptr;
      finish.stats = memory + stats_offset_ + row * kRowStats;
      finish.split_stride = split_stride_;
      finish.sink = problem_.sink_logit ? args.sink_logits[index % problem_.num_q_heads]
                                        : -std::numeric_limits<float>::infinity();
      finish.out_dtype = problem_.out_dtype;
      finish.out = static_cast<char*>(args.out) +
                   index * problem_.head_dim * static_cast<int64_t>(size_of(problem_.out_dtype));
      finish.lse = args.lse != nullptr ? args.lse + index : nullptr;
      finish.rel_std = args.rel_std != nullptr ? args.rel_std + index : nullptr;
      finish.out_rel_std = args.out_rel_std != nullptr ? args.out_rel_std + index : nullptr;
      functions_.finish_row(finish);
    }
  }

  DecodeOp op_;
  DecodeProblem problem_;
  const TileFunctions& functions_;
  int32_t num_lists_ = 0, heads_per_list_ = 0, lists_per_kv_head_ = 0, num_rows_ = 0;
  int64_t spread_offset_ = 0, stats_offset_ = 0, split_stride_ = 0, q_floats_ = 0;  // in floats
};

template <DecodeOp kOp, size_t kTarget>
Status supports(const DecodeProblem& problem) {
  const TileFunctions& functions = tile_functions()[kTarget];
  if (functions.bf16_products && (problem.kv_dtype != DType::bf16 || problem.head_dim % 32 != 0)) {
    return Status::unsupported("expected a bf16 cache and head_dim a multiple of 32");
  }
  bool available = (hwy::SupportedTargets() & functions.target) != 0;
#if HWY_ARCH_X86
  available = available && (!functions.bf16_products || __builtin_cpu_supports("avx512bf16"));
#endif
  if (available) return {};
  return Status::unsupported("this machine lacks the instructions of " + std::string(functions.name));
}

template <DecodeOp kOp, size_t kTarget>
Expected<std::shared_ptr<const DecodeKernel>> make(const DecodeProblem& problem) {
  return std::shared_ptr<const DecodeKernel>(std::make_shared<CpuDecode>(kOp, problem, tile_functions()[kTarget]));
}

using Entry = Implementation<DecodeProblem, std::shared_ptr<const DecodeKernel>>;

template <DecodeOp kOp, size_t... kTargets>
std::vector<Entry> make_list(std::index_sequence<kTargets...>) {
  const std::vector<Entry> all = {
      {kTargets < tile_functions().size() ? tile_functions()[kTargets].name : "", DeviceKind::cpu, supports<kOp, kTargets>,
       make<kOp, kTargets>}...};
  return {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(tile_functions().size())};
}

}  // namespace

std::span<const Entry> decode_implementations(DecodeOp op) {
  using Targets = std::make_index_sequence<5>;  // as many as tile_functions() can hold
  static const std::vector<Entry> dense = make_list<DecodeOp::dense>(Targets());
  static const std::vector<Entry> sparse = make_list<DecodeOp::sparse>(Targets());
  return op == DecodeOp::dense ? dense : sparse;
}

}  // namespace rarefy::cpu
