// Runs decode attention on an AttentionCase and compares it with the oracle.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/attention_case.h"
#include "tests/support/implementations.h"

namespace rarefy::test {

struct DecodeOutputs {
  std::vector<float> out;                        // [num_rows, head_dim] f32
  std::vector<float> lse, rel_std, out_rel_std;  // [num_rows] f32

  friend bool operator==(const DecodeOutputs&, const DecodeOutputs&) = default;
};

// Outputs of one implementation; NaN-filled outputs and workspace before, guards checked after.
DecodeOutputs run_decode(DecodeOp op, const std::string& name, AttentionData& data);
// Every implementation against the oracle.
void check_decode(DecodeOp op, const AttentionCase& description);

}  // namespace rarefy::test
