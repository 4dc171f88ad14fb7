// A case of `rarefy bench attention` as one line of text, `num_q_heads=32 num_kv_heads=8 head_dim=128 kv_dtype=bf16
// kv_len=32768 batch=1 sparsity=50 policy=50x`; fields may come in any order and have the defaults below. `model=NAME` sets the three
// sizes of a known model (rarefy models). `#` starts a comment.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "rarefy/core/dtype.h"

namespace rarefy::cli {

struct AttentionBenchCase {
  int32_t num_q_heads = 32, num_kv_heads = 8, head_dim = 128;
  DType kv_dtype = DType::bf16;
  DType q_dtype = DType::bf16;  // of dense and sparse decode; with a policy queries are f32, as in the engine
  int32_t page_size = 64, kv_len = 32768, batch = 1;
  double sparsity = 50.0;             // of the given indices
  std::vector<std::string> policies;  // may be repeated; one measured arm each

  int32_t num_selected() const;  // tokens of a given list
  std::string to_string() const;
};

// Fails with ExitCode::usage; `where` names the place in the message ("cases.txt:3").
AttentionBenchCase parse_attention_case(std::string_view text, const std::string& where);
// Every line that is not empty or a comment.
std::vector<AttentionBenchCase> parse_attention_cases(std::string_view text, const std::string& name);

}  // namespace rarefy::cli
