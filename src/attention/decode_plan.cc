#include <string>

#include "attention/checks.h"
#include "attention/registry.h"

namespace rarefy {
namespace {

std::string_view op_name(DecodeOp op) { return op == DecodeOp::dense ? "dense_decode" : "sparse_decode"; }

Status check_problem(DecodeOp op, const DecodeProblem& problem) {
  RAREFY_RETURN_IF_ERROR(check_heads(problem.num_q_heads, problem.num_kv_heads, problem.head_dim));
  RAREFY_RETURN_IF_ERROR(check_float_dtype("q_dtype", problem.q_dtype));
  RAREFY_RETURN_IF_ERROR(check_kv_dtype("kv_dtype", problem.kv_dtype));
  RAREFY_RETURN_IF_ERROR(check_float_dtype("out_dtype", problem.out_dtype));
  RAREFY_RETURN_IF_ERROR(check_page_size(problem.page_size));
  RAREFY_RETURN_IF_ERROR(check_soft_cap(problem.logit_soft_cap));
  RAREFY_RETURN_IF_ERROR(check_sliding_window(problem.sliding_window));
  if (op == DecodeOp::sparse && problem.sliding_window > 0) {
    return Status::unsupported("sliding_window: expected 0 in sparse attention, whose lists say what is seen, got " +
                               std::to_string(problem.sliding_window));
  }
  if (problem.num_queries < 1 || problem.num_queries > 8) {
    return Status::unsupported("num_queries: expected 1 to 8, got " + std::to_string(problem.num_queries));
  }
  if (problem.max_batch < 1) {
    return Status::invalid_argument("max_batch: expected at least 1, got " + std::to_string(problem.max_batch));
  }
  if (op == DecodeOp::sparse && problem.max_selected < 0) {
    return Status::invalid_argument("max_selected: expected at least 0, got " + std::to_string(problem.max_selected));
  }
  return {};
}

// Shapes and, in host memory, counts. Kernels that read the ids on the host check their bounds as they go (a pass of its own over cold ids would
// cost 5 % of a step at 50x); that ids ascend is the selector's promise (validate() in index_set.h checks it).
Status check_index(const DecodeProblem& problem, const DecodeArgs& args, DeviceKind memory) {
  const IndexSetView& set = args.index;
  const int32_t num_lists = problem.scope == ListScope::kv_head ? problem.num_kv_heads : problem.num_q_heads;
  if (set.num_lists != num_lists) {
    return Status::invalid_argument("index.num_lists: expected " + std::to_string(num_lists) + " (one per " +
                                    (problem.scope == ListScope::kv_head ? "KV" : "query") + " head), got " +
                                    std::to_string(set.num_lists));
  }
  if (set.max_selected < 0 || set.max_selected > problem.max_selected) {
    return Status::invalid_argument("index.max_selected: expected 0 to " + std::to_string(problem.max_selected) +
                                    " (the plan's capacity), got " + std::to_string(set.max_selected));
  }
  RAREFY_RETURN_IF_ERROR(check_pointer("index.counts", set.counts, alignof(int32_t)));
  if (set.max_selected > 0) RAREFY_RETURN_IF_ERROR(check_pointer("index.token_ids", set.token_ids, alignof(int32_t)));
  for (int32_t row = 0; memory == DeviceKind::cpu && row < args.batch * num_lists; ++row) {
    const int32_t count = set.counts[row];
    if (count < kAllTokens || count > set.max_selected) {
      return Status::invalid_argument("index.counts[" + std::to_string(row / num_lists) + "][" +
                                      std::to_string(row % num_lists) + "]: expected -1 (all tokens) to " +
                                      std::to_string(set.max_selected) + " (max_selected), got " + std::to_string(count));
    }
  }
  return {};
}

}  // namespace

Expected<DecodePlan> DecodePlan::make(DecodeOp op, Device device, const DecodeProblem& problem) {
  if (Status status = check_problem(op, problem); !status.ok()) return status.with_context(op_name(op));
  RAREFY_ASSIGN_OR_RETURN(const DecodeImplementation* implementation,
                          choose(op_name(op), device, problem, decode_implementations(op)));
  RAREFY_ASSIGN_OR_RETURN(auto kernel, implementation->make(problem, device));
  return DecodePlan(op, device, problem, implementation->name, std::move(kernel));
}

Status DecodePlan::run(const DecodeArgs& args, Stream stream) const {
  const auto check = [&]() -> Status {
    if (args.batch < 1 || args.batch > problem_.max_batch) {
      return Status::invalid_argument("batch: expected 1 to max_batch=" + std::to_string(problem_.max_batch) + ", got " +
                                      std::to_string(args.batch));
    }
    RAREFY_RETURN_IF_ERROR(check_pointer("q", args.q, size_of(problem_.q_dtype)));
    RAREFY_RETURN_IF_ERROR(check_pointer("out", args.out, size_of(problem_.out_dtype)));
    RAREFY_RETURN_IF_ERROR(check_kv(args.kv, args.batch, problem_.num_kv_heads, problem_.head_dim, problem_.kv_dtype,
                                    problem_.page_size, device_.kind));
    if (problem_.sink_logit) RAREFY_RETURN_IF_ERROR(check_pointer("sink_logits", args.sink_logits, alignof(float)));
    if (op_ == DecodeOp::sparse) RAREFY_RETURN_IF_ERROR(check_index(problem_, args, device_.kind));
    if (op_ == DecodeOp::dense && (args.rel_std != nullptr || args.out_rel_std != nullptr)) {
      return Status::invalid_argument(
          "rel_std: dense attention has no sampling error; pass null for rel_std and out_rel_std");
    }
    return check_workspace(args.workspace, args.workspace_bytes, kernel_->workspace_bytes());
  };
  if (Status status = check(); !status.ok()) return status.with_context(op_name(op_));
  return kernel_->run(args, stream);
}

Status DecodePlan::prepare_workspace(void* workspace, std::size_t workspace_bytes, Stream stream) const {
  if (Status status = check_workspace(workspace, workspace_bytes, kernel_->workspace_bytes()); !status.ok()) {
    return status.with_context(op_name(op_));
  }
  return kernel_->prepare_workspace(workspace, stream);
}

Status DecodePlan::check(const void* workspace, Stream stream) const { return kernel_->check(workspace, stream); }

}  // namespace rarefy
