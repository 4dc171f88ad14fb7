#include "cpu/decode/decode.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>
#include <new>
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
// Lists whose first ids are fetched before the threads start.
constexpr int32_t kEarlyLists = 64;

struct Split {
  int32_t count = 0;   // parts
  int32_t tokens = 0;  // tokens of each part but the last
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
  const int32_t* token_ids = nullptr;  // [num_tokens] i32; null = consecutive
  const float* log_weight = nullptr;   // [num_tokens] f32; nullable
  int32_t first_token = 0;             // of lists without ids: they count from here
};

// What the threads share of a list.
struct ListWork {
  int32_t first_split = 0;              // splits of the lists before it
  std::atomic<int32_t> splits_left{0};  // whoever counts it down to 0 merges
};
static_assert(sizeof(ListWork) == 2 * sizeof(float));

// One tile of one split of one list, and where its rows are.
struct TileWork {
  int32_t item = 0, split = 0;
  int32_t first = 0, count = 0, last = 0;  // entries [first, first + count) of the list; the split ends at `last`
  bool starts_split = false, ids_are_inside = true;
  int64_t row_stride = 0;  // bytes from each row to the next of a full tile; 0 = not the same
  List list;
  const void* keys[kTileTokens];    // [kTileTokens] pointers to [head_dim] kv_dtype; entries past count repeat the last
  const void* values[kTileTokens];  // [kTileTokens] pointers to [head_dim] kv_dtype; likewise
  int32_t tokens[kTileTokens];      // [count] i32
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
    stats_offset_ = int64_t{num_rows_} * problem.head_dim;
    spread_offset_ = stats_offset_ + (int64_t{num_rows_} * kRowStats + 15) / 16 * 16;
    list_floats_ = (int64_t{problem.max_batch} * num_lists_ * 2 + 15) / 16 * 16;
  }

  std::size_t workspace_bytes() const override {
    const int64_t partial_floats =
        int64_t{problem_.max_batch} * num_lists_ * kMaxSplits * split_stride(op_ == DecodeOp::sparse);
    return static_cast<std::size_t>(list_floats_ + partial_floats) * sizeof(float);
  }

  Status run(const DecodeArgs& args, Stream) const override {
    const int32_t num_items = args.batch * num_lists_;
    int64_t num_tokens = 0;
    int32_t num_splits = 0;
    for (int32_t item = 0; item < num_items; ++item) {
      const List list = list_of(args, item);
      num_tokens += list.num_tokens;
      const int32_t count = split_tokens(list.num_tokens).count;
      new (list_work(args, item)) ListWork{num_splits, std::atomic<int32_t>(count)};
      num_splits += count;
      if (count == 0) finish(args, item);
      if (item < kEarlyLists) fetch_entries(list, 0);
    }
    const int64_t bytes = num_tokens * problem_.head_dim * static_cast<int64_t>(size_of(args.kv.dtype)) * 2;
    const int32_t threads = bytes < kParallelBytes ? 1 : num_threads();
    // No barrier inside: at 50x a barrier with its cold lines costs 5 % of a step.
    std::atomic<int32_t> next_split{0};
    std::atomic<bool> ids_are_inside{true};
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      if (!attend(args, next_split, num_splits)) ids_are_inside = false;
    }
    if (ids_are_inside) return {};
    return Status::invalid_argument(
        "sparse_decode: index.token_ids: expected tokens from 0 to kv_len - 1, got one outside");
  }

 private:
  List list_of(const DecodeArgs& args, int32_t item) const {
    const int32_t kv_len = args.kv.kv_lens[item / num_lists_];
    if (op_ == DecodeOp::dense) {
      const int32_t first = problem_.sliding_window > 0 ? std::max(0, kv_len - problem_.sliding_window) : 0;
      return {kv_len - first, nullptr, nullptr, first};
    }
    const int32_t count = args.index.counts[item];
    if (count == kAllTokens) return {kv_len, nullptr, nullptr, 0};
    const int64_t first = int64_t{item} * args.index.max_selected;
    return {count, args.index.token_ids + first, args.index.log_weight == nullptr ? nullptr : args.index.log_weight + first,
            0};
  }

  // Row of q, out and lse that belongs to row `row` of an item.
  int64_t row_index(int32_t item, int32_t row) const {
    const int32_t sequence = item / num_lists_, list = item % num_lists_;
    const int32_t query = row / heads_per_list_, head = list * heads_per_list_ + row % heads_per_list_;
    return (int64_t{sequence} * problem_.num_queries + query) * problem_.num_q_heads + head;
  }

  ListWork* list_work(const DecodeArgs& args, int32_t item) const { return static_cast<ListWork*>(args.workspace) + item; }

  // Floats of a split's sums. No room is left for what is not asked for: every memory page of cold sums costs a table walk.
  int64_t split_stride(bool with_spread) const { return with_spread ? spread_offset_ + stats_offset_ : spread_offset_; }
  int64_t split_stride(const DecodeArgs& args) const {
    return split_stride(op_ == DecodeOp::sparse && args.out_rel_std != nullptr);
  }
  static bool has_spread(const DecodeArgs& args, const List& list) {
    return list.log_weight != nullptr && args.out_rel_std != nullptr;
  }

  float* partial(const DecodeArgs& args, int32_t item, int32_t split) const {
    return static_cast<float*>(args.workspace) + list_floats_ +
           (list_work(args, item)->first_split + int64_t{split}) * split_stride(args);
  }

  // Ids and weights of a tile's tokens, from `first` of the list on.
  static void fetch_entries(const List& list, int32_t first) {
    for (int32_t i = first; i < std::min(first + kTileTokens, list.num_tokens);
         i += 64 / static_cast<int32_t>(sizeof(float))) {
      if (list.token_ids != nullptr) __builtin_prefetch(list.token_ids + i);
      if (list.log_weight != nullptr) __builtin_prefetch(list.log_weight + i);
    }
  }

  void prepare_queries(const DecodeArgs& args, int32_t item,
                       float* prepared) const {  // [num_rows, head_dim] f32
    for (int32_t row = 0; row < num_rows_; ++row) {
      const int64_t first = row_index(item, row) * problem_.head_dim;
      float converted[256];  // [head_dim] f32
      const float* q = converted;
      if (problem_.q_dtype == DType::f32) {
        q = static_cast<const float*>(args.q) + first;
      } else if (problem_.q_dtype == DType::bf16) {
        const auto* bits = static_cast<const BFloat16*>(args.q) + first;
        for (int32_t d = 0; d < problem_.head_dim; ++d) converted[d] = to_float(bits[d]);
      } else {
        for (int32_t d = 0; d < problem_.head_dim; ++d) converted[d] = load_as_float(args.q, problem_.q_dtype, first + d);
      }
      functions_.prepare_q(args.kv.dtype, q, problem_.head_dim, prepared + int64_t{row} * problem_.head_dim);
    }
  }

  // The next tile of this thread: the split goes on, or another one is taken from the common counter. False when all are.
  bool next_tile(const DecodeArgs& args, std::atomic<int32_t>& next_split, int32_t num_splits, const TileWork& previous,
                 TileWork& work) const {
    work.item = previous.item;
    work.split = previous.split;
    work.list = previous.list;
    work.first = previous.first + previous.count;
    work.last = previous.last;
    work.starts_split = false;
    if (work.first >= work.last) {
      const int32_t taken = next_split.fetch_add(1, std::memory_order_relaxed);
      if (taken >= num_splits) return false;
      // Splits are taken in ascending order, so the list is this thread's last one or one behind it.
      const int32_t last_item = args.batch * num_lists_ - 1;
      while (work.item < last_item && list_work(args, work.item + 1)->first_split <= taken) ++work.item;
      work.split = taken - list_work(args, work.item)->first_split;
      work.list = list_of(args, work.item);
      const Split parts = split_tokens(work.list.num_tokens);
      work.first = work.split * parts.tokens;
      work.last = std::min(work.list.num_tokens, work.first + parts.tokens);
      work.starts_split = true;
    }
    work.count = std::min(kTileTokens, work.last - work.first);
    work.ids_are_inside = find_rows(args, work);
    fetch_entries(work.list, work.first + kTileTokens);
    if (work.starts_split) fetch_state(args, work);
    return true;
  }

  // What a new split needs beside rows: queries, and the sums, which lie in cold memory at first: stores that miss would hold up
  // the whole first tile.
  void fetch_state(const DecodeArgs& args, const TileWork& work) const {
    const auto* memory = reinterpret_cast<const char*>(partial(args, work.item, work.split));
    const int64_t bytes = split_stride(has_spread(args, work.list)) * static_cast<int64_t>(sizeof(float));
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(memory + byte, 1, 3);
    const auto q_bytes = problem_.head_dim * static_cast<int64_t>(size_of(problem_.q_dtype));
    for (int32_t row = 0; row < num_rows_; ++row) {
      const char* q = static_cast<const char*>(args.q) + row_index(work.item, row) * q_bytes;
      for (int64_t byte = 0; byte < q_bytes; byte += 64) __builtin_prefetch(q + byte, 0, 3);
    }
  }

  // False when the list names a token outside the sequence; token 0 stands in for it.
  bool find_rows(const DecodeArgs& args, TileWork& work) const {
    const PagedKvView& kv = args.kv;
    const int32_t sequence = work.item / num_lists_;
    const int32_t* pages = kv.page_table + int64_t{sequence} * kv.max_pages_per_sequence;  // [max_pages_per_sequence] i32
    const int64_t head_offset = (work.item % num_lists_) / lists_per_kv_head_ * kv.head_stride;
    const int page_shift = std::countr_zero(static_cast<uint32_t>(kv.page_size));
    const int32_t page_mask = kv.page_size - 1;
    const auto element_bytes = static_cast<int64_t>(size_of(kv.dtype));
    const int64_t token_bytes = kv.token_stride * element_bytes;
    const auto* keys = static_cast<const char*>(kv.keys);
    const auto* values = static_cast<const char*>(kv.values);
    const auto offset_of = [&](int32_t token) {
      return (pages[token >> page_shift] * kv.page_stride + head_offset) * element_bytes +
             (token & page_mask) * token_bytes;
    };
    const auto set_row = [&](int32_t i, int32_t token, int64_t offset) {
      work.keys[i] = keys + offset;
      work.values[i] = values + offset;
      work.tokens[i] = token;
    };
    bool inside = true;
    work.row_stride = 0;
    if (work.list.token_ids != nullptr) {
      const auto kv_len = static_cast<uint32_t>(kv.kv_lens[sequence]);
      for (int32_t i = 0; i < work.count; ++i) {
        int32_t token = work.list.token_ids[work.first + i];
        if (static_cast<uint32_t>(token) >= kv_len) inside = false, token = 0;
        set_row(i, token, offset_of(token));
      }
    } else {
      const int32_t first = work.list.first_token + work.first;
      for (int32_t i = 0; i < work.count;) {
        int64_t offset = offset_of(first + i);
        const int32_t end = std::min(work.count, i + kv.page_size - ((first + i) & page_mask));
        if (i == 0 && end == kTileTokens) work.row_stride = token_bytes;
        for (; i < end; ++i, offset += token_bytes) set_row(i, first + i, offset);
      }
    }
    for (int32_t i = work.count; i < kTileTokens; ++i) {
      work.keys[i] = work.keys[work.count - 1];
      work.values[i] = work.values[work.count - 1];
    }
    return inside;
  }

  int32_t row_lines() const {
    return num_cache_lines(problem_.head_dim * static_cast<int64_t>(size_of(problem_.kv_dtype)));
  }
  // Whether the tile's rows are loaded right before it; else they are fetched ahead.
  bool is_loaded(const TileWork& work) const { return functions_.loads_scattered && work.list.token_ids != nullptr; }
  void load_tile(const TileWork& work) const {
    load_rows(work.keys, row_lines());
    load_rows(work.values, row_lines());
  }
  void fetch_tile(const TileWork& work) const {
    const int32_t lines = row_lines();
    const bool scattered = work.list.token_ids != nullptr;
    fetch_rows(work.keys, scattered, lines);
    fetch_rows(work.values, scattered, lines);
  }

  // One thread's share of the splits. The rows of the next tile, of this split or the next, are fetched during each tile, or loaded before it.
  // False when a list named a token outside its sequence.
  bool attend(const DecodeArgs& args, std::atomic<int32_t>& next_split, int32_t num_splits) const {
    alignas(64) float q[kMaxTileRows * 256];      // [num_rows, head_dim] f32; as prepare_q wrote it
    alignas(64) uint32_t paired_q[kPairedWords];  // [kPairedWords] u32; as pair_q wrote it
    int32_t item_of_q = -1;
    TileWork buffers[2];
    int32_t now = 0;
    bool inside = true;
    bool more = next_tile(args, next_split, num_splits, TileWork(), buffers[now]);
    if (!more) return true;
    if (functions_.enter != nullptr) functions_.enter(num_rows_);
    if (!is_loaded(buffers[now])) fetch_tile(buffers[now]);  // nobody did it during an earlier tile
    while (more) {
      const TileWork& work = buffers[now];
      inside = inside && work.ids_are_inside;
      more = next_tile(args, next_split, num_splits, work, buffers[1 - now]);
      if (work.item != item_of_q) {
        prepare_queries(args, work.item, q);
        if (functions_.pair_q != nullptr) functions_.pair_q(num_rows_, problem_.head_dim, q, paired_q);
      }
      item_of_q = work.item;
      if (is_loaded(work)) load_tile(work);
      const TileWork& next = buffers[1 - now];
      attend_tile(args, work, q, paired_q, more && !is_loaded(next) ? &next : nullptr);
      // Acquire and release: whoever counts down to 0 sees the sums of all splits.
      const bool split_is_done = work.first + work.count >= work.last;
      if (split_is_done && list_work(args, work.item)->splits_left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        finish(args, work.item);
      }
      now = 1 - now;
    }
    if (functions_.leave != nullptr) functions_.leave();
    return inside;
  }

  void attend_tile(const DecodeArgs& args, const TileWork& work,
                   const float* q,            // [num_rows, head_dim] f32; as prepare_q wrote it
                   const uint32_t* paired_q,  // [kPairedWords] u32; as pair_q wrote it
                   const TileWork* next) const {
    const bool with_variance = work.list.log_weight != nullptr && (args.rel_std != nullptr || args.out_rel_std != nullptr);
    float* memory = partial(args, work.item, work.split);
    Partial sums;
    sums.sum = memory;
    sums.spread = has_spread(args, work.list) ? memory + spread_offset_ : nullptr;
    sums.stats = memory + stats_offset_;
    if (work.starts_split) functions_.start(num_rows_, problem_.head_dim, sums);

    Tile tile;
    tile.kv_dtype = args.kv.dtype;
    tile.num_rows = num_rows_;
    tile.head_dim = problem_.head_dim;
    tile.num_tokens = work.count;
    tile.scale = args.scale;
    tile.q_is_bf16 = problem_.q_dtype == DType::bf16;
    tile.q = q;
    tile.paired_q = paired_q;
    tile.row_stride = work.row_stride;
    tile.keys = work.keys;
    tile.values = work.values;
    tile.scattered = work.list.token_ids != nullptr;
    if (next != nullptr) {
      tile.next_keys = next->keys;
      tile.next_values = next->values;
      tile.next_row_stride = next->row_stride;
      tile.next_scattered = next->list.token_ids != nullptr;
    }
    tile.log_weight = work.list.log_weight != nullptr ? work.list.log_weight + work.first : nullptr;
    int32_t last_visible[kMaxTileRows];
    if (problem_.num_queries > 1) {
      const int32_t kv_len = args.kv.kv_lens[work.item / num_lists_];
      for (int32_t row = 0; row < num_rows_; ++row)
        last_visible[row] = kv_len - problem_.num_queries + row / heads_per_list_;
      tile.token_ids = work.tokens;
      tile.last_visible = last_visible;
    }
    tile.soft_cap = problem_.logit_soft_cap;
    tile.with_variance = with_variance;
    functions_.add_tile(tile, sums);
  }

  void finish(const DecodeArgs& args, int32_t item) const {
    const List list = list_of(args, item);
    const bool with_spread = has_spread(args, list);
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
      finish.split_stride = split_stride(args);
      finish.sink =
          problem_.sink_logit ? args.sink_logits[index % problem_.num_q_heads] : -std::numeric_limits<float>::infinity();
      finish.out_dtype = problem_.out_dtype;
      finish.out =
          static_cast<char*>(args.out) + index * problem_.head_dim * static_cast<int64_t>(size_of(problem_.out_dtype));
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
  // Workspace, in floats: ListWork of every list, then per split sums, statistics at stats_offset_, spreads at spread_offset_.
  int64_t list_floats_ = 0, stats_offset_ = 0, spread_offset_ = 0;
};

template <DecodeOp kOp, size_t kTarget>
Status supports(const DecodeProblem& problem, Device) {
  if (problem.kv_dtype == DType::f8_e4m3) return Status::unsupported("expected an f32, f16 or bf16 cache, got f8_e4m3");
  const TileFunctions& functions = tile_functions()[kTarget];
  if (functions.bf16_products && (problem.kv_dtype != DType::bf16 || problem.head_dim % 32 != 0)) {
    return Status::unsupported("expected a bf16 cache and head_dim a multiple of 32");
  }
  if (problem.sliding_window > 0 && problem.num_queries > 1) {
    return Status::unsupported("expected one query a sequence with a sliding window");
  }
  if (functions.is_supported()) return {};
  return Status::unsupported("this machine lacks the instructions of " + std::string(functions.name));
}

template <DecodeOp kOp, size_t kTarget>
Expected<std::shared_ptr<const DecodeKernel>> make(const DecodeProblem& problem, Device) {
  return std::shared_ptr<const DecodeKernel>(std::make_shared<CpuDecode>(kOp, problem, tile_functions()[kTarget]));
}

using Entry = Implementation<DecodeProblem, std::shared_ptr<const DecodeKernel>>;

template <DecodeOp kOp, size_t... kTargets>
std::vector<Entry> make_list(std::index_sequence<kTargets...>) {
  const std::vector<Entry> all = {{kTargets < tile_functions().size() ? tile_functions()[kTargets].name : "",
                                   DeviceKind::cpu, supports<kOp, kTargets>, make<kOp, kTargets>}...};
  return {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(tile_functions().size())};
}

}  // namespace

std::span<const Entry> decode_implementations(DecodeOp op) {
  using Targets = std::make_index_sequence<6>;  // as many as tile_functions() can hold
  static const std::vector<Entry> dense = make_list<DecodeOp::dense>(Targets());
  static const std::vector<Entry> sparse = make_list<DecodeOp::sparse>(Targets());
  return op == DecodeOp::dense ? dense : sparse;
}

}  // namespace rarefy::cpu
