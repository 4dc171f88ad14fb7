#include <string>

#include "attention/checks.h"
#include "attention/registry.h"

namespace rarefy {

Expected<MergePlan> MergePlan::make(Device device, const MergeProblem& problem) {
  if (problem.head_dim < 1 || problem.head_dim > 256) {
    return Status::unsupported("merge: head_dim: expected 1 to 256, got " + std::to_string(problem.head_dim));
  }
  RAREFY_ASSIGN_OR_RETURN(const MergeImplementation* implementation,
                          choose("merge", device, problem, merge_implementations()));
  RAREFY_ASSIGN_OR_RETURN(const MergeFunction function, implementation->make(problem, device));
  return MergePlan(problem, implementation->name, function);
}

Status MergePlan::run(const MergeArgs& args, Stream stream) const {
  if (args.num_parts < 1 || args.num_rows < 0) {
    return Status::invalid_argument("merge: expected num_parts >= 1 and num_rows >= 0, got num_parts=" +
                                    std::to_string(args.num_parts) + " num_rows=" + std::to_string(args.num_rows));
  }
  RAREFY_RETURN_IF_ERROR(check_pointer("merge: part_out", args.part_out, alignof(float)));
  RAREFY_RETURN_IF_ERROR(check_pointer("merge: part_lse", args.part_lse, alignof(float)));
  RAREFY_RETURN_IF_ERROR(check_pointer("merge: out", args.out, alignof(float)));
  return function_(problem_, args, stream);
}

}  // namespace rarefy
