#include "attention/registry.h"

#include <vector>

#include "cpu/decode/decode.h"
#include "cpu/prefill/prefill.h"
#include "ref/attention_kernels.h"

namespace rarefy {
namespace {

Status supports_all_decode(const DecodeProblem&) { return {}; }
Status supports_all_prefill(const PrefillProblem&) { return {}; }

template <DecodeOp kOp>
std::vector<DecodeImplementation> make_decode_list() {
  std::vector<DecodeImplementation> list;
  for (const auto& entry : cpu::decode_implementations(kOp)) {
    list.push_back({entry.name, DeviceKind::cpu, entry.supports, entry.make});
  }
  list.push_back({"ref", DeviceKind::cpu, supports_all_decode,
                  [](const DecodeProblem& problem) -> Expected<std::shared_ptr<const DecodeKernel>> {
                    return ref::make_decode_kernel(kOp, problem);
                  }});
  return list;
}

std::vector<PrefillImplementation> make_prefill_list() {
  std::vector<PrefillImplementation> list;
  for (const auto& entry : cpu::prefill_implementations()) {
    list.push_back({entry.name, DeviceKind::cpu, entry.supports, entry.make});
  }
  list.push_back({"ref", DeviceKind::cpu, supports_all_prefill,
                  [](const PrefillProblem& problem) -> Expected<std::shared_ptr<const PrefillKernel>> {
                    return ref::make_prefill_kernel(problem);
                  }});
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

}  // namespace rarefy
