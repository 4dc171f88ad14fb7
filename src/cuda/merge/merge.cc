#include "cuda/merge/merge.h"

#include <utility>
#include <vector>

#include "cuda/host/architectures.h"
#include "cuda/host/runtime.h"
#include "cuda/merge/launch.h"

namespace rarefy::cuda {
namespace {

// The arguments live on the current device; the kernel is the same for all, so a plan needs no state of its own.
Status run(const MergeProblem& problem, const MergeArgs& args, Stream stream) {
  int device = 0;
  RAREFY_CUDA(cudaGetDevice(&device));
  const std::pair<const char*, const void*> pointers[] = {{"merge: part_out", args.part_out},
                                                          {"merge: part_lse", args.part_lse},
                                                          {"merge: out", args.out},
                                                          {"merge: lse", args.lse}};
  for (const auto& [name, pointer] : pointers) {
    if (pointer != nullptr) RAREFY_RETURN_IF_ERROR(check_device_pointer(name, pointer, device));
  }
  RAREFY_CUDA(launch_merge(problem.head_dim, args, native(stream)));
  return {};
}

template <size_t kIndex>
Status supports(const MergeProblem&, Device device) {
  return check_architecture(kArchitectures[kIndex], device);
}

Expected<MergeFunction> make(const MergeProblem&, Device) { return MergeFunction{run}; }

using Entry = Implementation<MergeProblem, MergeFunction>;

template <size_t... kIndices>
std::vector<Entry> make_list(std::index_sequence<kIndices...>) {
  return {{kArchitectures[kIndices].merge_name, DeviceKind::cuda, supports<kIndices>, make}...};
}

}  // namespace

std::span<const Entry> merge_implementations() {
  static const std::vector<Entry> list = make_list(std::make_index_sequence<std::size(kArchitectures)>());
  return list;
}

}  // namespace rarefy::cuda
