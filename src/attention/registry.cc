#include "attention/registry.h"

#include <vector>

#include "cpu/decode/decode.h"
#include "cpu/prefill/prefill.h"
#include "ref/attention_kernels.h"
#include "ref/merge.h"
#if RAREFY_HAS_CUDA
#include "cuda/implementations.h"
#endif

namespace rarefy {
namespace {

template <typename Problem>
Status supports_all(const Problem&, Device) {
  return {};
}

template <DecodeOp kOp>
std::vector<DecodeImplementation> make_decode_list() {
  std::vector<DecodeImplementation> list;
#if RAREFY_HAS_CUDA
  for (const auto& entry : cuda::decode_implementations(kOp)) list.push_back(entry);
#endif
  for (const auto& entry : cpu::decode_implementations(kOp)) list.push_back(entry);
  list.push_back({"ref", DeviceKind::cpu, supports_all<DecodeProblem>,
                  [](const DecodeProblem& problem, Device) -> Expected<std::shared_ptr<const DecodeKernel>> {
                    return ref::make_decode_kernel(kOp, problem);
                  }});
  return list;
}

std::vector<PrefillImplementation> make_prefill_list() {
  std::vector<PrefillImplementation> list;
  for (const auto& entry : cpu::prefill_implementations()) list.push_back(entry);
  list.push_back({"ref", DeviceKind::cpu, supports_all<PrefillProblem>,
                  [](const PrefillProblem& problem, Device) -> Expected<std::shared_ptr<const PrefillKernel>> {
                    return ref::make_prefill_kernel(problem);
                  }});
  return list;
}

std::vector<MergeImplementation> make_merge_list() {
  std::vector<MergeImplementation> list;
#if RAREFY_HAS_CUDA
  for (const auto& entry : cuda::merge_implementations()) list.push_back(entry);
#endif
  list.push_back({"ref", DeviceKind::cpu, supports_all<MergeProblem>,
                  [](const MergeProblem&, Device) -> Expected<MergeFunction> { return MergeFunction{ref::merge}; }});
  return list;
}

}  // namespace

std::span<const DecodeImplementation> decode_implementations(DecodeOp op) {
  static const std::vector<DecodeImplementation> dense = make_decode_list<DecodeOp::dense>();
  static const std::vector<DecodeImplementation> sparse = make_decode_list<DecodeOp::sparse>();
  return op == DecodeOp::dense ? dense : sparse;
}

std::span<const PrefillImplementation> prefill_implementations() {
  static const std::vector<PrefillImplementation> list = make_prefill_list();
  return list;
}

std::span<const MergeImplementation> merge_implementations() {
  static const std::vector<MergeImplementation> list = make_merge_list();
  return list;
}

}  // namespace rarefy
