// Decode attention over a paged KV cache: dense (every cached token) and sparse (the tokens of an IndexSet).
//
// One estimator, for every query head h that uses list l, with s_i = scale * q_h . k_i (after the optional soft cap):
//
//   out = sum_i exp(s_i + log_weight_i) v_i / sum_i exp(s_i + log_weight_i),   lse = ln of the denominator,   i in list l
//
// With c_i = exp(s_i + log_weight_i), pi_i = exp(-log_weight_i), D the denominator:
//   rel_std     = sqrt(sum_i c_i^2 (1 - pi_i)) / D
//   out_rel_std = sqrt(sum_i c_i^2 (1 - pi_i) |v_i - out|^2) / (D |out|)
// the *estimated* relative standard errors of the denominator and of the output under priority or uniform sampling
// (design: "estimated" is not a bound, docs/certificate.md). Deterministic tokens contribute nothing to them.
// An empty list gives out = 0, lse = -inf and both errors 0. (out, lse) pairs merge (merge.h).
//
// plan() once per shape, run() per layer and step: run() never allocates and, on CUDA, never synchronises and can be captured
// into a graph (but for debug builds, below). Plans are immutable and may be shared between threads. A workspace is prepared once
// after it was allocated and then belongs to one call at a time.
//
// On CUDA all pointers are device memory of the plan's device, 16-byte aligned where they hold rows; counts, lengths and ids are
// read there, so run() cannot refuse them: a token id outside the sequence is left out, a count above max_selected is cut, and
// check() reports the first of them. Debug builds check after every run() that is not being captured, which synchronises.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

#include "rarefy/attention/index_set.h"
#include "rarefy/attention/paged_kv.h"
#include "rarefy/core/device.h"

namespace rarefy {

struct DecodeProblem {
  int32_t num_q_heads = 0;  // a multiple of num_kv_heads; group = num_q_heads / num_kv_heads in 1..16
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  DType q_dtype = DType::f32;    // f32, f16, bf16
  DType kv_dtype = DType::bf16;  // f32, f16, bf16, f8_e4m3
  DType out_dtype = DType::f32;  // f32, f16, bf16
  int32_t page_size = 16;        // a power of two, 1..256
  int32_t num_queries =
      1;  // queries per sequence, 1..8; query j sits at position kv_len - num_queries + j and skips later tokens
  ListScope scope = ListScope::kv_head;  // sparse only
  float logit_soft_cap = 0.0f;           // c > 0: s <- c tanh(s / c)
  int32_t sliding_window = 0;  // dense only; W > 0: a query at position p sees p - W + 1 .. p; 0 = everything before it
  bool sink_logit = false;     // a learned per-head logit that enters the denominator only
  int32_t max_batch = 1;
  int32_t max_selected = 0;  // sparse only; capacity of one list
  int32_t max_kv_len = 0;    // longest sequence, for the size of a CUDA workspace; 0 = any
};

struct DecodeArgs {
  int32_t batch = 1;
  float scale = 1.0f;       // multiplies q . k
  const void* q = nullptr;  // [batch, num_queries, num_q_heads, head_dim] q_dtype; contiguous
  PagedKvView kv;
  IndexSetView index;                  // sparse only
  const float* sink_logits = nullptr;  // [num_q_heads] f32; only with problem.sink_logit
  void* out = nullptr;                 // [batch, num_queries, num_q_heads, head_dim] out_dtype; contiguous
  float* lse = nullptr;                // [batch, num_queries, num_q_heads] f32; natural log; nullable
  float* rel_std = nullptr;            // [batch, num_queries, num_q_heads] f32; nullable; sparse only
  float* out_rel_std = nullptr;        // [batch, num_queries, num_q_heads] f32; nullable; sparse only
  void* workspace = nullptr;           // [workspace_bytes] bytes; 64-byte aligned; nullable when the plan needs none
  std::size_t workspace_bytes = 0;
};

// What an implementation provides.
class DecodeKernel {
 public:
  virtual ~DecodeKernel() = default;
  virtual std::size_t workspace_bytes() const = 0;
  virtual Status prepare_workspace(void* workspace, Stream stream) const {  // workspace [workspace_bytes] bytes
    static_cast<void>(workspace), static_cast<void>(stream);
    return {};
  }
  virtual Status check(const void* workspace, Stream stream) const {  // workspace [workspace_bytes] bytes
    static_cast<void>(workspace), static_cast<void>(stream);
    return {};
  }
  // Pre: args were validated against the problem, but for the token ids: a host kernel refuses ids outside the sequence
  // without reading their rows.
  virtual Status run(const DecodeArgs& args, Stream stream) const = 0;
};

enum class DecodeOp : int32_t { dense = 0, sparse = 1 };

class DecodePlan {
 public:
  static Expected<DecodePlan> make(DecodeOp op, Device device, const DecodeProblem& problem);

  std::string_view implementation() const { return implementation_; }  // "cpu_avx3", "ref", ...
  std::size_t workspace_bytes() const { return kernel_->workspace_bytes(); }
  const DecodeProblem& problem() const { return problem_; }
  // Once per workspace, before its first run(); a later run() leaves it ready for the next. Nothing to do on the CPU.
  Status prepare_workspace(void* workspace,  // [workspace_bytes] bytes; 64-byte aligned
                           std::size_t workspace_bytes, Stream stream = {}) const;
  // Waits for the stream and reports the first bad count or token id that run() met on a device since the last check().
  Status check(const void* workspace,  // [workspace_bytes] bytes
               Stream stream = {}) const;
  // Refuses what does not fit the problem (batch, pointers, strides, capacities, counts) before it touches any data; on the CPU
  // also token ids outside the sequence, after which the outputs hold nothing of use.
  Status run(const DecodeArgs& args, Stream stream = {}) const;

 private:
  DecodePlan(DecodeOp op, Device device, const DecodeProblem& problem, std::string_view implementation,
             std::shared_ptr<const DecodeKernel> kernel)
      : op_(op), device_(device), problem_(problem), implementation_(implementation), kernel_(std::move(kernel)) {}
  DecodeOp op_;
  Device device_;
  DecodeProblem problem_;
  std::string_view implementation_;
  std::shared_ptr<const DecodeKernel> kernel_;
};

}  // namespace rarefy
