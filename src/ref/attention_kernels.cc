#include "ref/attention_kernels.h"

#include <vector>

#include "ref/attention.h"

namespace rarefy::ref {
namespace {

void store_rows(const std::vector<double>& from,  // [count] f64
                DType dtype,
                void* to) {  // [count] dtype; nullable
  for (size_t i = 0; to != nullptr && i < from.size(); ++i) {
    store_from_float(to, dtype, static_cast<int64_t>(i), static_cast<float>(from[i]));
  }
}

bool ids_are_inside(const DecodeArgs& args) {
  const IndexSetView& set = args.index;
  for (int64_t row = 0; row < int64_t{args.batch} * set.num_lists; ++row) {
    const int32_t kv_len = args.kv.kv_lens[row / set.num_lists];
    for (int32_t i = 0; i < set.counts[row]; ++i) {
      const int32_t token = set.token_ids[row * set.max_selected + i];
      if (token < 0 || token >= kv_len) return false;
    }
  }
  return true;
}

class ReferenceDecode final : public DecodeKernel {
 public:
  ReferenceDecode(DecodeOp op, const DecodeProblem& problem) : op_(op), problem_(problem) {}
  std::size_t workspace_bytes() const override { return 0; }
  Status run(const DecodeArgs& args, Stream) const override {
    if (op_ == DecodeOp::sparse && !ids_are_inside(args)) {
      return Status::invalid_argument(
          "sparse_decode: index.token_ids: expected tokens from 0 to kv_len - 1, got one outside");
    }
    const AttentionResult result = decode_attention(op_, problem_, args);
    store_rows(result.out, problem_.out_dtype, args.out);
    store_rows(result.lse, DType::f32, args.lse);
    store_rows(result.rel_std, DType::f32, args.rel_std);
    store_rows(result.out_rel_std, DType::f32, args.out_rel_std);
    return {};
  }

 private:
  DecodeOp op_;
  DecodeProblem problem_;
};

class ReferencePrefill final : public PrefillKernel {
 public:
  explicit ReferencePrefill(const PrefillProblem& problem) : problem_(problem) {}
  std::size_t workspace_bytes() const override { return 0; }
  Status run(const PrefillArgs& args, Stream) const override {
    const AttentionResult result = prefill_attention(problem_, args);
    store_rows(result.out, problem_.out_dtype, args.out);
    store_rows(result.lse, DType::f32, args.lse);
    return {};
  }

 private:
  PrefillProblem problem_;
};

}  // namespace

std::shared_ptr<const DecodeKernel> make_decode_kernel(DecodeOp op, const DecodeProblem& problem) {
  return std::make_shared<ReferenceDecode>(op, problem);
}

std::shared_ptr<const PrefillKernel> make_prefill_kernel(const PrefillProblem& problem) {
  return std::make_shared<ReferencePrefill>(problem);
}

}  // namespace rarefy::ref
