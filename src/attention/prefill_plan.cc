#include <string>

#include "attention/checks.h"
#include "attention/registry.h"

namespace rarefy {
namespace {

Status check_problem(const PrefillProblem& problem) {
  RAREFY_RETURN_IF_ERROR(check_heads(problem.num_q_heads, problem.num_kv_heads, problem.head_dim));
  RAREFY_RETURN_IF_ERROR(check_float_dtype("q_dtype", problem.q_dtype));
  RAREFY_RETURN_IF_ERROR(check_float_dtype("kv_dtype", problem.kv_dtype));
  RAREFY_RETURN_IF_ERROR(check_float_dtype("out_dtype", problem.out_dtype));
  RAREFY_RETURN_IF_ERROR(check_page_size(problem.page_size));
  RAREFY_RETURN_IF_ERROR(check_soft_cap(problem.logit_soft_cap));
  RAREFY_RETURN_IF_ERROR(check_sliding_window(problem.sliding_window));
  if (problem.max_new_tokens >= 1) return {};
  return Status::invalid_argument("max_new_tokens: expected at least 1, got " + std::to_string(problem.max_new_tokens));
}

}  // namespace

Expected<PrefillPlan> PrefillPlan::make(Device device, const PrefillProblem& problem) {
  if (Status status = check_problem(problem); !status.ok()) return status.with_context("prefill");
  RAREFY_ASSIGN_OR_RETURN(const PrefillImplementation* implementation,
                          choose("prefill", device, problem, prefill_implementations()));
  RAREFY_ASSIGN_OR_RETURN(auto kernel, implementation->make(problem, device));
  return PrefillPlan(problem, implementation->name, std::move(kernel));
}

Status PrefillPlan::run(const PrefillArgs& args, Stream stream) const {
  const auto check = [&]() -> Status {
    if (args.num_new < 1 || args.num_new > problem_.max_new_tokens) {
      return Status::invalid_argument("num_new: expected 1 to max_new_tokens=" + std::to_string(problem_.max_new_tokens) +
                                      ", got " + std::to_string(args.num_new));
    }
    RAREFY_RETURN_IF_ERROR(check_pointer("q", args.q, size_of(problem_.q_dtype)));
    RAREFY_RETURN_IF_ERROR(check_pointer("out", args.out, size_of(problem_.out_dtype)));
    RAREFY_RETURN_IF_ERROR(check_kv(args.kv, 1, problem_.num_kv_heads, problem_.head_dim, problem_.kv_dtype,
                                    problem_.page_size, DeviceKind::cpu));
    if (args.kv.kv_lens[0] < args.num_new) {
      return Status::invalid_argument("kv_lens[0]: expected at least num_new=" + std::to_string(args.num_new) +
                                      ": the cache already holds the new tokens, got " +
                                      std::to_string(args.kv.kv_lens[0]));
    }
    return check_workspace(args.workspace, args.workspace_bytes, kernel_->workspace_bytes());
  };
  if (Status status = check(); !status.ok()) return status.with_context("prefill");
  return kernel_->run(args, stream);
}

}  // namespace rarefy
