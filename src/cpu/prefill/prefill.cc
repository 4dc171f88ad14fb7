#include "cpu/prefill/prefill.h"

#include <omp.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "cpu/prefill/block.h"
#include "hwy/targets.h"

namespace rarefy::cpu {
namespace {

class CpuPrefill final : public PrefillKernel {
 public:
  CpuPrefill(const PrefillProblem& problem, const PrefillFunctions& functions)
      : problem_(problem),
        functions_(functions),
        max_threads_(num_threads()),
        scratch_floats_((prefill_scratch_floats(problem.head_dim) + 15) / 16 * 16) {}

  std::size_t workspace_bytes() const override {
    return static_cast<std::size_t>(max_threads_ * scratch_floats_) * sizeof(float);
  }

  Status run(const PrefillArgs& args, Stream) const override {
    const int32_t threads = std::min(num_threads(), max_threads_);
    // A row's result does not depend on its block, so blocks may shrink to keep every thread busy.
    constexpr int32_t kBlocksPerThread = 4, kMinQueries = 8;
    const int32_t group = problem_.num_q_heads / problem_.num_kv_heads;
    const int32_t balanced =
        (args.num_new * problem_.num_kv_heads + kBlocksPerThread * threads - 1) / (kBlocksPerThread * threads);
    const int32_t block_queries = std::clamp(balanced, kMinQueries, kPrefillRows / group);
    const int32_t num_blocks = (args.num_new + block_queries - 1) / block_queries;
    auto* workspace = static_cast<float*>(args.workspace);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int32_t work = 0; work < num_blocks * problem_.num_kv_heads; ++work) {
      PrefillBlock block;
      block.problem = &problem_;
      block.args = &args;
      block.kv_head = work % problem_.num_kv_heads;
      // The last queries see the most keys: longest first.
      block.first_query = (num_blocks - 1 - work / problem_.num_kv_heads) * block_queries;
      block.num_queries = std::min(block_queries, args.num_new - block.first_query);
      block.scratch = workspace + omp_get_thread_num() * scratch_floats_;
      functions_.run_block(block);
    }
    return {};
  }

 private:
  PrefillProblem problem_;
  const PrefillFunctions& functions_;
  int32_t max_threads_ = 1;
  int64_t scratch_floats_ = 0;  // of one thread
};

template <size_t kTarget>
Status supports(const PrefillProblem&, Device) {
  const PrefillFunctions& functions = prefill_functions()[kTarget];
  if ((hwy::SupportedTargets() & functions.target) != 0) return {};
  return Status::unsupported("this machine lacks the instructions of " + std::string(functions.name));
}

template <size_t kTarget>
Expected<std::shared_ptr<const PrefillKernel>> make(const PrefillProblem& problem, Device) {
  return std::shared_ptr<const PrefillKernel>(std::make_shared<CpuPrefill>(problem, prefill_functions()[kTarget]));
}

using Entry = Implementation<PrefillProblem, std::shared_ptr<const PrefillKernel>>;

template <size_t... kTargets>
std::vector<Entry> make_list(std::index_sequence<kTargets...>) {
  const std::vector<Entry> all = {{kTargets < prefill_functions().size() ? prefill_functions()[kTargets].name : "",
                                   DeviceKind::cpu, supports<kTargets>, make<kTargets>}...};
  return {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(prefill_functions().size())};
}

}  // namespace

std::span<const Entry> prefill_implementations() {
  static const std::vector<Entry> list = make_list(std::make_index_sequence<4>());  // cpu/simd/targets.h names at most 4
  return list;
}

}  // namespace rarefy::cpu
