// Decode and merge plans. Translates structs; what they mean is checked by the plans themselves.
#include <cmath>
#include <string>

#include "capi/call.h"
#include "capi/handles.h"

using namespace rarefy;
using capi::call;
using capi::check_struct_size;
using capi::require;

namespace {

Status check_enum(std::string_view field, int32_t value, int32_t last, std::string_view type) {
  if (value >= 0 && value <= last) return {};
  return Status::invalid_argument(std::string(field) + ": expected a " + std::string(type) + ", got " +
                                  std::to_string(value));
}

Expected<Device> device_of(int32_t kind, int32_t index) {
  RAREFY_RETURN_IF_ERROR(check_enum("device_kind", kind, RAREFY_DEVICE_CUDA, "rarefy_device_kind"));
  return Device{kind == RAREFY_DEVICE_CUDA ? DeviceKind::cuda : DeviceKind::cpu, index};
}

Status apply_dtype(std::string_view field, int32_t value, DType& to) {
  switch (value) {
    case RAREFY_DTYPE_DEFAULT: return {};
    case RAREFY_DTYPE_F32: to = DType::f32; return {};
    case RAREFY_DTYPE_F16: to = DType::f16; return {};
    case RAREFY_DTYPE_BF16: to = DType::bf16; return {};
    case RAREFY_DTYPE_F8_E4M3: to = DType::f8_e4m3; return {};
  }
  return check_enum(field, value, RAREFY_DTYPE_F8_E4M3, "rarefy_dtype");
}

Expected<DecodeProblem> problem_of(const rarefy_decode_problem& from) {
  RAREFY_RETURN_IF_ERROR(check_struct_size("rarefy_decode_problem", from.struct_size, sizeof(from)));
  RAREFY_RETURN_IF_ERROR(check_enum("op", from.op, RAREFY_DECODE_SPARSE, "rarefy_decode_op"));
  RAREFY_RETURN_IF_ERROR(check_enum("scope", from.scope, RAREFY_LISTS_PER_QUERY_HEAD, "rarefy_list_scope"));
  DecodeProblem to;
  to.num_q_heads = from.num_q_heads;
  to.num_kv_heads = from.num_kv_heads;
  to.head_dim = from.head_dim;
  RAREFY_RETURN_IF_ERROR(apply_dtype("q_dtype", from.q_dtype, to.q_dtype));
  RAREFY_RETURN_IF_ERROR(apply_dtype("kv_dtype", from.kv_dtype, to.kv_dtype));
  RAREFY_RETURN_IF_ERROR(apply_dtype("out_dtype", from.out_dtype, to.out_dtype));
  if (from.page_size != 0) to.page_size = from.page_size;
  if (from.num_queries != 0) to.num_queries = from.num_queries;
  to.scope = static_cast<ListScope>(from.scope);
  to.logit_soft_cap = from.logit_soft_cap;
  to.sink_logit = from.sink_logit != 0;
  if (from.max_batch != 0) to.max_batch = from.max_batch;
  to.max_selected = from.max_selected;
  to.max_kv_len = from.max_kv_len;
  return to;
}

Status apply_kv(const rarefy_paged_kv& from, const DecodeProblem& problem, PagedKvView& to) {
  RAREFY_RETURN_IF_ERROR(check_struct_size("rarefy_paged_kv", from.struct_size, sizeof(from)));
  to.keys = from.keys;
  to.values = from.values;
  to.dtype = problem.kv_dtype;
  to.page_stride = from.page_stride;
  to.token_stride = from.token_stride;
  to.head_stride = from.head_stride;
  if (from.page_stride == 0 && from.token_stride == 0 && from.head_stride == 0) {
    to.head_stride = problem.head_dim;
    to.token_stride = to.head_stride * problem.num_kv_heads;
    to.page_stride = to.token_stride * problem.page_size;
  }
  to.num_pages = from.num_pages;
  to.page_size = problem.page_size;
  to.num_kv_heads = problem.num_kv_heads;
  to.head_dim = problem.head_dim;
  to.page_table = from.page_table;
  to.max_pages_per_sequence = from.max_pages_per_sequence;
  to.kv_lens = from.kv_lens;
  to.key_scales = from.key_scales;
  to.value_scales = from.value_scales;
  return {};
}

Status apply_index(const rarefy_index_set* from, DecodeOp op, const DecodeProblem& problem, IndexSetView& to) {
  if (op == DecodeOp::dense) {
    if (from == nullptr) return {};
    return Status::invalid_argument("index: expected NULL for dense attention, got an index set");
  }
  RAREFY_RETURN_IF_ERROR(require(from, "an index set"));
  RAREFY_RETURN_IF_ERROR(check_struct_size("rarefy_index_set", from->struct_size, sizeof(*from)));
  to.token_ids = from->token_ids;
  to.counts = from->counts;
  to.log_weight = from->log_weight;
  to.num_lists = problem.scope == ListScope::kv_head ? problem.num_kv_heads : problem.num_q_heads;
  to.max_selected = from->max_selected;
  return {};
}

Expected<DecodeArgs> args_of(const rarefy_decode_plan& plan, const rarefy_decode_args& from) {
  RAREFY_RETURN_IF_ERROR(check_struct_size("rarefy_decode_args", from.struct_size, sizeof(from)));
  RAREFY_RETURN_IF_ERROR(require(from.kv, "a KV cache"));
  const DecodeProblem& problem = plan.plan.problem();
  DecodeArgs to;
  if (from.batch != 0) to.batch = from.batch;
  to.scale = from.scale != 0.0f ? from.scale : 1.0f / std::sqrt(static_cast<float>(problem.head_dim));
  to.q = from.q;
  RAREFY_RETURN_IF_ERROR(apply_kv(*from.kv, problem, to.kv));
  RAREFY_RETURN_IF_ERROR(apply_index(from.index, plan.op, problem, to.index));
  to.sink_logits = from.sink_logits;
  to.out = from.out;
  to.lse = from.lse;
  to.rel_std = from.rel_std;
  to.out_rel_std = from.out_rel_std;
  to.workspace = from.workspace;
  to.workspace_bytes = from.workspace_bytes;
  return to;
}

}  // namespace

rarefy_status rarefy_decode_plan_create(const rarefy_decode_problem* problem, rarefy_decode_plan** plan) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(problem, "a problem"));
    RAREFY_RETURN_IF_ERROR(require(plan, "a place for the plan"));
    RAREFY_ASSIGN_OR_RETURN(const DecodeProblem resolved, problem_of(*problem));
    RAREFY_ASSIGN_OR_RETURN(const Device device, device_of(problem->device_kind, problem->device_index));
    const auto op = static_cast<DecodeOp>(problem->op);
    RAREFY_ASSIGN_OR_RETURN(DecodePlan made, DecodePlan::make(op, device, resolved));
    std::string implementation(made.implementation());
    *plan = new rarefy_decode_plan{std::move(made), op, std::move(implementation)};
    return {};
  });
}

void rarefy_decode_plan_free(rarefy_decode_plan* plan) { delete plan; }

const char* rarefy_decode_plan_implementation(const rarefy_decode_plan* plan) {
  return plan == nullptr ? "" : plan->implementation.c_str();
}

rarefy_status rarefy_decode_plan_workspace_bytes(const rarefy_decode_plan* plan, size_t* workspace_bytes) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(plan, "a plan"));
    RAREFY_RETURN_IF_ERROR(require(workspace_bytes, "a place for the size"));
    *workspace_bytes = plan->plan.workspace_bytes();
    return {};
  });
}

rarefy_status rarefy_decode_plan_prepare_workspace(const rarefy_decode_plan* plan, void* workspace, size_t workspace_bytes,
                                                   void* stream) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(plan, "a plan"));
    return plan->plan.prepare_workspace(workspace, workspace_bytes, Stream{stream});
  });
}

rarefy_status rarefy_decode_plan_run(const rarefy_decode_plan* plan, const rarefy_decode_args* args, void* stream) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(plan, "a plan"));
    RAREFY_RETURN_IF_ERROR(require(args, "arguments"));
    RAREFY_ASSIGN_OR_RETURN(const DecodeArgs resolved, args_of(*plan, *args));
    return plan->plan.run(resolved, Stream{stream});
  });
}

rarefy_status rarefy_decode_plan_check(const rarefy_decode_plan* plan, const void* workspace, void* stream) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(plan, "a plan"));
    if (plan->plan.workspace_bytes() != 0) RAREFY_RETURN_IF_ERROR(require(workspace, "the plan's workspace"));
    return plan->plan.check(workspace, Stream{stream});
  });
}

rarefy_status rarefy_merge_plan_create(const rarefy_merge_problem* problem, rarefy_merge_plan** plan) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(problem, "a problem"));
    RAREFY_RETURN_IF_ERROR(require(plan, "a place for the plan"));
    RAREFY_RETURN_IF_ERROR(check_struct_size("rarefy_merge_problem", problem->struct_size, sizeof(*problem)));
    RAREFY_ASSIGN_OR_RETURN(const Device device, device_of(problem->device_kind, problem->device_index));
    RAREFY_ASSIGN_OR_RETURN(const MergePlan made, MergePlan::make(device, {.head_dim = problem->head_dim}));
    std::string implementation(made.implementation());
    *plan = new rarefy_merge_plan{made, std::move(implementation)};
    return {};
  });
}

void rarefy_merge_plan_free(rarefy_merge_plan* plan) { delete plan; }

const char* rarefy_merge_plan_implementation(const rarefy_merge_plan* plan) {
  return plan == nullptr ? "" : plan->implementation.c_str();
}

rarefy_status rarefy_merge_plan_run(const rarefy_merge_plan* plan, const rarefy_merge_args* args, void* stream) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(plan, "a plan"));
    RAREFY_RETURN_IF_ERROR(require(args, "arguments"));
    RAREFY_RETURN_IF_ERROR(check_struct_size("rarefy_merge_args", args->struct_size, sizeof(*args)));
    MergeArgs to;
    to.num_parts = args->num_parts;
    to.num_rows = args->num_rows;
    to.part_out = args->part_out;
    to.part_lse = args->part_lse;
    to.out = args->out;
    to.lse = args->lse;
    return plan->plan.run(to, Stream{stream});
  });
}
