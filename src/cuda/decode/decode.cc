#include "cuda/decode/decode.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "cuda/decode/launch.h"
#include "cuda/host/architectures.h"
#include "cuda/host/runtime.h"

namespace rarefy::cuda {
namespace {

constexpr std::size_t kHeaderBytes = 256;  // the error record
static_assert(sizeof(ErrorRecord) <= kHeaderBytes);

std::size_t round_up(std::size_t bytes) { return (bytes + 255) / 256 * 256; }
std::string number(int64_t value) { return std::to_string(value); }
std::string subscript(int32_t value) { return std::string(1, '[').append(number(value)).append(1, ']'); }

// How a list's columns are dealt to blocks.
struct Columns {
  int32_t slots = 8, per_block = 1, num_blocks = 1;
};

Columns deal_columns(int32_t columns, int32_t head_dim, bool certificates) {
  Columns result;
  const int32_t wanted = columns * (certificates ? 2 : 1);
  result.slots = wanted > 8 && head_dim <= 128 ? 16 : 8;
  const int32_t capacity = result.slots / (certificates ? 2 : 1);
  result.num_blocks = ceil_div(columns, capacity);
  result.per_block = ceil_div(columns, result.num_blocks);
  return result;
}

using LaunchFunction = cudaError_t (*)(const DecodeLaunch&, cudaStream_t);

class CudaDecode final : public DecodeKernel {
 public:
  CudaDecode(DecodeOp op, const DecodeProblem& problem, Device device, const DeviceFacts& facts, bool overlap)
      : op_(op), problem_(problem), device_(device), facts_(facts), overlap_(overlap) {
    const bool bf16 = problem.q_dtype == DType::bf16;
    launch_ = problem.kv_dtype == DType::f8_e4m3 ? (bf16 ? launch_decode_e4m3_bf16 : launch_decode_e4m3_f16)
                                                 : (bf16 ? launch_decode_bf16 : launch_decode_f16);
    const bool kv_scope = op == DecodeOp::dense || problem.scope == ListScope::kv_head;
    const int32_t group = problem.num_q_heads / problem.num_kv_heads;
    num_lists_ = kv_scope ? problem.num_kv_heads : problem.num_q_heads;
    heads_per_list_ = kv_scope ? group : 1;
    lists_per_kv_head_ = kv_scope ? 1 : group;
    max_kv_len_ = problem.max_kv_len > 0 ? problem.max_kv_len : kMaxTokens;
    pair_capacity_ = Cut(std::max(max_kv_len_, op == DecodeOp::sparse ? problem.max_selected : 0), num_lists_).pairs();

    const int32_t columns = heads_per_list_ * problem.num_queries;
    plain_ = deal_columns(columns, problem.head_dim, false);
    certified_ = op == DecodeOp::sparse ? deal_columns(columns, problem.head_dim, true) : plain_;
    const int64_t lists = int64_t{problem.max_batch} * num_lists_;
    const int64_t blocks = lists * std::max(plain_.num_blocks, certified_.num_blocks);
    const int64_t rows = lists * pair_capacity_ *
                         std::max(plain_.num_blocks * plain_.per_block,
                                  certified_.num_blocks * certified_.per_block * (op == DecodeOp::sparse ? 2 : 1));
    counters_bytes_ = round_up(static_cast<std::size_t>(blocks) * sizeof(int32_t));
    stats_bytes_ = round_up(static_cast<std::size_t>(rows * 4) * sizeof(float));
    sums_bytes_ = round_up(static_cast<std::size_t>(rows * problem.head_dim) * sizeof(float));
  }

  std::size_t workspace_bytes() const override { return kHeaderBytes + counters_bytes_ + stats_bytes_ + sums_bytes_; }

  Status prepare_workspace(void* workspace, Stream stream) const override {
    RAREFY_RETURN_IF_ERROR(check_current_device(device_.index));
    RAREFY_RETURN_IF_ERROR(check_device_pointer("workspace", workspace, device_.index));
    RAREFY_CUDA(cudaMemsetAsync(workspace, 0, kHeaderBytes + counters_bytes_, native(stream)));
    return {};
  }

  Status check(const void* workspace, Stream stream) const override {
    ErrorRecord record;
    RAREFY_CUDA(cudaMemcpyAsync(&record, workspace, sizeof(record), cudaMemcpyDeviceToHost, native(stream)));
    RAREFY_CUDA(cudaStreamSynchronize(native(stream)));
    if (record.kind == 0) return {};
    // The record is Rarefy's own part of the workspace; const says that the caller's contents stay as they are.
    RAREFY_CUDA(cudaMemsetAsync(const_cast<void*>(workspace), 0, sizeof(record), native(stream)));
    const std::string place = subscript(record.sequence) + subscript(record.list);
    const std::string list = place + subscript(record.position);
    switch (record.kind) {
      case kErrorToken:
        return Status::invalid_argument("index.token_ids" + list + ": expected a token from 0 to kv_len - 1 = " +
                                        number(record.limit - 1) + ", got " + number(record.value) + "; it was left out");
      case kErrorCount:
        return Status::invalid_argument("index.counts" + place + ": expected -1 (all tokens) to " + number(record.limit) +
                                        " (max_selected), got " + number(record.value) + "; it was cut");
      case kErrorPage:
        return Status::invalid_argument("kv.page_table" + subscript(record.sequence) + subscript(record.position) +
                                        ": expected a page from 0 to " + number(record.limit - 1) + ", got " +
                                        number(record.value) + "; its tokens were left out");
      default:
        return Status::invalid_argument("kv.kv_lens" + subscript(record.sequence) + ": expected 0 to " +
                                        number(record.limit) + " (page table, max_kv_len), got " + number(record.value) +
                                        "; it was cut");
    }
  }

  Status run(const DecodeArgs& args, Stream stream) const override {
    RAREFY_RETURN_IF_ERROR(check_args(args));
    const bool certificates = args.rel_std != nullptr || args.out_rel_std != nullptr;
    const Columns& columns = certificates ? certified_ : plain_;
    const int64_t element_bytes = static_cast<int64_t>(size_of(problem_.kv_dtype));
    const int64_t table_tokens = int64_t{args.kv.max_pages_per_sequence} * args.kv.page_size;

    DecodeLaunch launch;
    launch.head_dim = problem_.head_dim;
    launch.slots = columns.slots;
    launch.batch = args.batch;
    launch.overlap = overlap_;
    launch.shared_bytes = facts_.shared_bytes;
    DecodeParams& p = launch.params;
    p.q = args.q;
    p.keys = static_cast<const char*>(args.kv.keys);
    p.values = static_cast<const char*>(args.kv.values);
    p.page_units = static_cast<uint32_t>(args.kv.page_stride * element_bytes / 16);
    p.token_units = static_cast<uint32_t>(args.kv.token_stride * element_bytes / 16);
    p.head_bytes = args.kv.head_stride * element_bytes;
    p.page_table = args.kv.page_table;
    p.kv_lens = args.kv.kv_lens;
    p.num_pages = args.kv.num_pages;
    p.max_pages = args.kv.max_pages_per_sequence;
    p.page_shift = 0;
    while ((1 << p.page_shift) < args.kv.page_size) ++p.page_shift;
    p.max_kv_len = static_cast<int32_t>(std::min<int64_t>(table_tokens, max_kv_len_));
    p.key_scales = args.kv.key_scales;
    p.value_scales = args.kv.value_scales;
    const bool sparse = op_ == DecodeOp::sparse;
    p.token_ids = sparse ? args.index.token_ids : nullptr;
    p.counts = sparse ? args.index.counts : nullptr;
    p.log_weight = sparse ? args.index.log_weight : nullptr;
    p.max_selected = sparse ? args.index.max_selected : 0;
    p.sink_logits = problem_.sink_logit ? args.sink_logits : nullptr;
    p.scale = args.scale;
    p.soft_cap = problem_.logit_soft_cap;
    p.inverse_soft_cap = p.soft_cap > 0.0f ? 1.0f / p.soft_cap : 0.0f;
    p.num_q_heads = problem_.num_q_heads;
    p.num_kv_heads = problem_.num_kv_heads;
    p.num_queries = problem_.num_queries;
    p.num_lists = num_lists_;
    p.heads_per_list = heads_per_list_;
    p.lists_per_kv_head = lists_per_kv_head_;
    p.columns_per_block = columns.per_block;
    p.num_column_blocks = columns.num_blocks;
    p.out = args.out;
    p.out_dtype = static_cast<int32_t>(problem_.out_dtype);
    p.lse = args.lse;
    p.rel_std = args.rel_std;
    p.out_rel_std = args.out_rel_std;
    char* workspace = static_cast<char*>(args.workspace);
    p.error = reinterpret_cast<ErrorRecord*>(workspace);
    p.counters = reinterpret_cast<int32_t*>(workspace + kHeaderBytes);
    p.part_stats = reinterpret_cast<float*>(workspace + kHeaderBytes + counters_bytes_);
    p.part_sums = reinterpret_cast<float*>(workspace + kHeaderBytes + counters_bytes_ + stats_bytes_);
    p.pair_capacity = pair_capacity_;
    const int32_t room = blocks_per_multiprocessor(problem_.head_dim, columns.slots) * facts_.num_multiprocessors;
    const int64_t lists = int64_t{args.batch} * num_lists_ * columns.num_blocks;
    p.full_tokens = sparse ? p.max_selected : p.max_kv_len;
    p.full = Cut(p.full_tokens, num_lists_);
    launch.blocks = choose_blocks(p.full.pairs(), lists, room);
    const int32_t multiprocessors = facts_.num_multiprocessors;
    if (p.full.pairs() == launch.blocks.per_list)
      launch.blocks = without_idle_warps(launch.blocks, lists, room, multiprocessors);
    if (overlap_) launch.blocks = joined(launch.blocks, lists, room, multiprocessors);  // where there are clusters
    p.full_shares = Shares(p.full.pairs(), launch.blocks);
    const bool cluster = overlap_ && forms_cluster(launch.blocks, lists, room, multiprocessors);
    launch.parts_in_shared = p.full.pairs() > 1 && (p.full_shares.blocks == 1 || cluster);
    // The next kernel's blocks start early where they fit beside this one's. Dense lists are mostly shorter than the page table allows.
    p.reads_early = !sparse || next_fits(launch.blocks, lists, room, multiprocessors);
    launch.certificates = certificates;
    p.deals_blocks =
        p.counts != nullptr && num_lists_ > 1 && num_lists_ <= 32 && launch.blocks.per_list > 1 && !p.full_shares.two_warps;
    // Blocks of a sequence; about so many sequences are worked on at a time.
    const int32_t blocks = launch.blocks.per_list * num_lists_ * columns.num_blocks;
    p.block_tokens = ceil_div(std::max(1, p.max_selected), launch.blocks.per_list);
    p.prefetch_table_lines = ceil_div(ceil_div(p.max_pages, 32), blocks);
    p.prefetch_sequences = std::max(1, room / blocks);
    RAREFY_CUDA(launch_(launch, native(stream)));
#ifndef NDEBUG
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    RAREFY_CUDA(cudaStreamIsCapturing(native(stream), &capture));
    if (capture == cudaStreamCaptureStatusNone) return check(args.workspace, stream);
#endif
    return {};
  }

 private:
  // What the plan's own checks do not know of: device memory, 16-byte rows, offsets of 32 bits.
  Status check_args(const DecodeArgs& args) const {
    RAREFY_RETURN_IF_ERROR(check_current_device(device_.index));
    const int64_t element_bytes = static_cast<int64_t>(size_of(problem_.kv_dtype));
    const std::pair<const char*, const void*> rows[] = {
        {"q", args.q}, {"out", args.out}, {"kv.keys", args.kv.keys}, {"kv.values", args.kv.values}};
    for (const auto& [name, pointer] : rows) {
      if (reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0 && pointer != nullptr) continue;
      return Status::invalid_argument(std::string(name) + ": expected rows aligned to 16 bytes, got " +
                                      (pointer == nullptr ? "null" : "an address that is not"));
    }
    const std::pair<const char*, int64_t> strides[] = {{"kv.page_stride", args.kv.page_stride},
                                                       {"kv.token_stride", args.kv.token_stride},
                                                       {"kv.head_stride", args.kv.head_stride}};
    for (const auto& [name, stride] : strides) {
      if (stride * element_bytes % 16 == 0) continue;
      return Status::invalid_argument(std::string(name) + ": expected a multiple of " + number(16 / element_bytes) +
                                      " elements (16 bytes), got " + number(stride));
    }
    const int64_t reach =
        (int64_t{args.kv.num_pages} * args.kv.page_stride + int64_t{args.kv.page_size} * args.kv.token_stride) *
        element_bytes / 16;
    if (reach >= std::numeric_limits<uint32_t>::max()) {
      return Status::unsupported("kv: expected pages within 64 GiB of the first, got " + number(reach * 16) +
                                 " bytes; give each layer its own pool");
    }
    return check_pointers(args);
  }

  Status check_pointers(const DecodeArgs& args) const {
    const std::pair<const char*, const void*> pointers[] = {
        {"q", args.q},
        {"out", args.out},
        {"kv.keys", args.kv.keys},
        {"kv.values", args.kv.values},
        {"kv.page_table", args.kv.page_table},
        {"kv.kv_lens", args.kv.kv_lens},
        {"kv.key_scales", args.kv.key_scales},
        {"kv.value_scales", args.kv.value_scales},
        {"index.counts", args.index.counts},
        {"index.token_ids", args.index.token_ids},
        {"index.log_weight", args.index.log_weight},
        {"sink_logits", args.sink_logits},
        {"lse", args.lse},
        {"rel_std", args.rel_std},
        {"out_rel_std", args.out_rel_std},
        {"workspace", args.workspace},
    };
    for (const auto& [name, pointer] : pointers) {
      if (pointer != nullptr) RAREFY_RETURN_IF_ERROR(check_device_pointer(name, pointer, device_.index));
    }
    if (args.kv.page_table == nullptr) return Status::invalid_argument("kv.page_table: expected a buffer, got null");
    return {};
  }

  DecodeOp op_;
  DecodeProblem problem_;
  Device device_;
  DeviceFacts facts_;
  bool overlap_;
  LaunchFunction launch_ = nullptr;
  int32_t num_lists_ = 0, heads_per_list_ = 0, lists_per_kv_head_ = 0, max_kv_len_ = 0, pair_capacity_ = 0;
  Columns plain_, certified_;
  std::size_t counters_bytes_ = 0, stats_bytes_ = 0, sums_bytes_ = 0;
};

Status check_shape(const DecodeProblem& problem) {
  if (problem.head_dim != 64 && problem.head_dim != 128 && problem.head_dim != 256) {
    return Status::unsupported("expected head_dim 64, 128 or 256, got " + number(problem.head_dim));
  }
  if (problem.q_dtype != DType::bf16 && problem.q_dtype != DType::f16) {
    return Status::unsupported("expected q_dtype bf16 or f16, got " + std::string(to_string(problem.q_dtype)));
  }
  if (problem.kv_dtype != problem.q_dtype && problem.kv_dtype != DType::f8_e4m3) {
    return Status::unsupported("expected kv_dtype equal to q_dtype, or f8_e4m3, got " +
                               std::string(to_string(problem.kv_dtype)) + " with q_dtype " +
                               std::string(to_string(problem.q_dtype)));
  }
  if (problem.sliding_window > 0) return Status::unsupported("expected no sliding_window, which these kernels do not mask");
  if (problem.max_kv_len > kMaxTokens || problem.max_selected > kMaxTokens) {
    return Status::unsupported("expected max_kv_len and max_selected up to " + number(kMaxTokens) + ", got " +
                               number(problem.max_kv_len) + " and " + number(problem.max_selected));
  }
  if (problem.max_batch > 65535)
    return Status::unsupported("expected max_batch up to 65535, got " + number(problem.max_batch));
  return {};
}

using Entry = Implementation<DecodeProblem, std::shared_ptr<const DecodeKernel>>;

template <size_t kIndex>
Status supports(const DecodeProblem& problem, Device device) {
  RAREFY_RETURN_IF_ERROR(check_shape(problem));
  return check_architecture(kArchitectures[kIndex], device);
}

template <DecodeOp kOp, size_t kIndex>
Expected<std::shared_ptr<const DecodeKernel>> make(const DecodeProblem& problem, Device device) {
  constexpr const Architecture& kArchitecture = kArchitectures[kIndex];
  warn_if_never_run(kArchitecture);
  RAREFY_ASSIGN_OR_RETURN(const DeviceFacts facts, device_facts(device.index));
  return std::shared_ptr<const DecodeKernel>(
      std::make_shared<CudaDecode>(kOp, problem, device, facts, kArchitecture.capability >= 90));
}

template <DecodeOp kOp, size_t... kIndices>
std::vector<Entry> make_list(std::index_sequence<kIndices...>) {
  return {{kArchitectures[kIndices].decode_name, DeviceKind::cuda, supports<kIndices>, make<kOp, kIndices>}...};
}

}  // namespace

std::span<const Entry> decode_implementations(DecodeOp op) {
  using All = std::make_index_sequence<std::size(kArchitectures)>;
  static const std::vector<Entry> dense = make_list<DecodeOp::dense>(All());
  static const std::vector<Entry> sparse = make_list<DecodeOp::sparse>(All());
  return op == DecodeOp::dense ? dense : sparse;
}

}  // namespace rarefy::cuda
