// Random attention problems: one description (AttentionCase, printable), one set of buffers (AttentionData) with NaN in every
// row, list entry and output that must not be read, and the comparison with the oracle under derived bounds.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "rarefy/attention/decode.h"
#include "rarefy/attention/prefill.h"
#include "ref/attention.h"
#include "tests/support/guarded_buffer.h"

namespace rarefy::test {

enum class KvLayout { nhd, hnd, head_major };

struct AttentionCase {
  int32_t num_q_heads = 8, num_kv_heads = 2, head_dim = 64;
  DType q_dtype = DType::f32, kv_dtype = DType::bf16, out_dtype = DType::f32;
  int32_t page_size = 16, num_queries = 1;
  std::vector<int32_t> kv_lens = {100};  // one per sequence
  KvLayout layout = KvLayout::nhd;
  ListScope scope = ListScope::kv_head;
  double density = 0.2;         // sparse: share of the tokens in each list, varied from list to list
  bool log_weights = true;      // sparse: about half of the entries are sampled
  bool all_tokens = false;      // sparse: every list holds every token, weight 0
  bool dense_fallback = false;  // sparse: every third list has count -1
  float logit_soft_cap = 0.0f;
  int32_t sliding_window = 0;  // dense; rows that no query sees hold NaN
  bool sink_logit = false;
  bool kv_scales = false;     // f8_e4m3 only: a scale per KV head
  float logit_spread = 2.0f;  // standard deviation of the logits
  uint64_t seed = 1;

  std::string to_string() const;
  int32_t batch() const { return static_cast<int32_t>(kv_lens.size()); }
};

// Gaussian-like numbers from the counter-based generator.
class RandomStream {
 public:
  explicit RandomStream(uint64_t seed) : seed_(seed) {}
  uint32_t bits();
  double uniform();  // [0, 1)
  double normal();
  int32_t below(int32_t bound) { return static_cast<int32_t>(uniform() * bound); }

 private:
  uint64_t seed_, counter_ = 0;
};

// Owns everything that DecodeArgs or PrefillArgs point to. Move-only.
class AttentionData {
 public:
  AttentionData(const AttentionCase& description, DecodeOp op);

  DecodeProblem decode_problem() const;
  DecodeArgs decode_args();                // dense ops get no index and no error outputs
  PrefillProblem prefill_problem() const;  // sequence 0; num_queries queries
  PrefillArgs prefill_args();
  void* reserve_workspace(std::size_t bytes);  // fresh NaN at every call
  void poison_outputs();
  ::testing::AssertionResult guards_intact() const;

  int64_t num_rows() const { return int64_t{case_.batch()} * case_.num_queries * case_.num_q_heads; }
  std::vector<float> out_values() const;  // [num_rows, head_dim] f32
  int64_t row_offset(int32_t sequence, int32_t token, int32_t kv_head) const {
    return kv_.row_offset(sequence, token, kv_head);
  }

  // In the cache's own dtype; the pool is NaN where nothing was written.
  GuardedBuffer<unsigned char> keys, values;       // [num_pages, page_size, num_kv_heads, head_dim] kv_dtype; by layout
  GuardedBuffer<unsigned char> q, out;             // [num_rows, head_dim] q_dtype, out_dtype
  GuardedBuffer<float> lse, rel_std, out_rel_std;  // [num_rows] f32
  GuardedBuffer<int32_t> page_table, lens;         // [batch, max_pages] and [batch] i32
  GuardedBuffer<int32_t> token_ids, counts;        // [batch, num_lists, max_selected] and [batch, num_lists] i32
  GuardedBuffer<float> log_weight;                 // [batch, num_lists, max_selected] f32
  GuardedBuffer<float> sinks;                      // [num_q_heads] f32
  GuardedBuffer<float> key_scales, value_scales;   // [num_kv_heads] f32
  float scale = 1.0f;

 private:
  void make_cache(RandomStream& random);
  void make_lists(RandomStream& random);
  void write_row(int32_t sequence, int32_t token, int32_t kv_head);

  AttentionCase case_;
  DecodeOp op_;
  PagedKvView kv_;
  int32_t num_lists_ = 0, max_selected_ = 0;
  GuardedBuffer<unsigned char> workspace_;
};

// What a run is compared with; null results are not compared.
struct Got {
  std::vector<float> out;              // [num_rows, head_dim] f32
  const float* lse = nullptr;          // [num_rows] f32
  const float* rel_std = nullptr;      // [num_rows] f32
  const float* out_rel_std = nullptr;  // [num_rows] f32
};

// Element-wise, with eps = 2^-24, n the longest list and w the rounding of the weights p_i (2^-8 where an implementation keeps
// them in bf16, else 0):
//   |out - ref| <= eps_out |ref| + (c eps (8 + log2 n + 2 logit_scale) + 2 w) A
// `variance_floor`: variance weights below this share of the largest weight squared may vanish (f16 products: 2^-36).
// The terms cover the rounding of logits (2 logit_scale), of exponentials and sums, and of the weights in numerator and
// denominator. The largest share of the bound in use over a test is its recorded property "worst_share".
::testing::AssertionResult matches_oracle(const Got& got, const ref::AttentionResult& expected, int32_t head_dim,
                                          DType out_dtype, int32_t longest_list, double weight_rounding,
                                          double variance_floor = 0.0);

// Rounding of the weights by an implementation: bf16 products on the CPU; products in the type of q on CUDA.
double weight_rounding(const std::string& implementation, DType q_dtype = DType::f32);

}  // namespace rarefy::test
