// Causal prefill attention: `num_new` consecutive queries of one sequence against its paged cache, which already holds their
// keys and values. Query j sits at position kv_len - num_new + j and sees positions 0 .. its own, or the last of these that a
// sliding window holds; keys and values outside every query's window are not read. Blocked with an online
// softmax: never a full score matrix.
#pragma once

#include <memory>
#include <string_view>

#include "rarefy/attention/paged_kv.h"
#include "rarefy/core/device.h"

namespace rarefy {

struct PrefillProblem {
  int32_t num_q_heads = 0;  // a multiple of num_kv_heads
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  DType q_dtype = DType::f32;
  DType kv_dtype = DType::bf16;  // f32, f16, bf16
  DType out_dtype = DType::f32;
  int32_t page_size = 16;
  float logit_soft_cap = 0.0f;
  int32_t sliding_window = 0;  // W > 0: a query at position p sees p - W + 1 .. p; 0 = everything before it
  int32_t max_new_tokens = 0;
};

struct PrefillArgs {
  int32_t num_new = 0;  // 1 .. max_new_tokens
  float scale = 1.0f;
  const void* q = nullptr;    // [num_new, num_q_heads, head_dim] q_dtype; contiguous
  PagedKvView kv;             // batch of one
  void* out = nullptr;        // [num_new, num_q_heads, head_dim] out_dtype; contiguous
  float* lse = nullptr;       // [num_new, num_q_heads] f32; natural log; nullable
  void* workspace = nullptr;  // [workspace_bytes] bytes; 64-byte aligned
  std::size_t workspace_bytes = 0;
};

class PrefillKernel {
 public:
  virtual ~PrefillKernel() = default;
  virtual std::size_t workspace_bytes() const = 0;
  virtual Status run(const PrefillArgs& args, Stream stream) const = 0;
};

class PrefillPlan {
 public:
  static Expected<PrefillPlan> make(Device device, const PrefillProblem& problem);

  std::string_view implementation() const { return implementation_; }
  std::size_t workspace_bytes() const { return kernel_->workspace_bytes(); }
  const PrefillProblem& problem() const { return problem_; }
  Status run(const PrefillArgs& args, Stream stream = {}) const;

 private:
  PrefillPlan(const PrefillProblem& problem, std::string_view implementation, std::shared_ptr<const PrefillKernel> kernel)
      : problem_(problem), implementation_(implementation), kernel_(std::move(kernel)) {}
  PrefillProblem problem_;
  std::string_view implementation_;
  std::shared_ptr<const PrefillKernel> kernel_;
};

}  // namespace rarefy
