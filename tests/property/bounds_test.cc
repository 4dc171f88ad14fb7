// The bounded mode's promise: no logit above its bound, no value longer than its norm. And bounds that are worth something.
#include <gtest/gtest.h>

#include "ref/select.h"
#include "tests/support/selector_case.h"

namespace rarefy {
namespace {

using Case = test::SelectorCase;
constexpr uint32_t kSeed = 16180;

double norm_of(const float* row, int32_t dim) {
  double square = 0.0;
  for (int32_t i = 0; i < dim; ++i) square += double{row[i]} * double{row[i]};
  return std::sqrt(square);
}

const std::vector<std::string>& bounded_selectors() {
  static const std::vector<std::string> names = {
      "quest16:bound", "quest32:bound",    "quest16:int8:bound",        "quest32:int4:bound", "sign:bound",
      "q2:bound",      "quest32+q2:bound", "quest16:int4:bound+sign64", "sign64:bound",       "quest32:int4+sign64:bound"};
  return names;
}

TEST(Bounds, HoldForEveryTokenAndValue) {
  for (const std::string& name : bounded_selectors()) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      for (const auto& [head_dim, group] : {std::pair{16, 1}, std::pair{64, 4}, std::pair{80, 3}, std::pair{128, 7}}) {
        SCOPED_TRACE(name + " " + std::string(to_string(dtype)) + " head_dim " + std::to_string(head_dim));
        const Case c(name, head_dim, group, 64 * 12 + 37, dtype, kSeed);
        ASSERT_TRUE(c.selector->has_bounds());
        const auto bounds = c.bounds();
        for (int32_t query = 0; query < group; ++query) {
          const auto exact = ref::exact_scores(c.q.data() + query * head_dim, c.keys.data(), c.num_tokens, head_dim);
          for (int32_t token = 0; token < c.num_tokens; ++token) {
            EXPECT_GE(bounds[query][token], exact.value[token]) << "token " << token << " query " << query;
            EXPECT_TRUE(std::isfinite(bounds[query][token]));
          }
        }
        Case::Pointers pointers;
        std::vector<float> norms(static_cast<size_t>(c.num_blocks));
        c.selector->value_bounds(c.blocks(c.all_blocks(), pointers), norms.data());
        for (int32_t block = 0; block < c.num_blocks; ++block) {
          double largest = 0.0;
          for (int32_t token = block * c.block_tokens; token < std::min(c.num_tokens, (block + 1) * c.block_tokens);
               ++token) {
            largest = std::max(largest, norm_of(c.values.data() + int64_t{token} * head_dim, head_dim));
          }
          EXPECT_GE(norms[block], largest);
          EXPECT_LE(norms[block], largest * (1 + 0x1p-7));
        }
      }
    }
  }
}

// A key whose quantisation error points along the query reaches its bound: here keys are one of few directions and the query
// is such an error, so that a bound without the residual, or with half of it, would be broken.
TEST(Bounds, AreNearlyReached) {
  for (const std::string name : {"sign:bound", "q2:bound", "sign64:bound"}) {
    constexpr int32_t kDim = 16;
    const Case c(name, kDim, 4, 16 * 800, DType::f32, kSeed + 1, 0.0f);
    const auto bounds = c.bounds(), scores = c.scores();
    double closest = 0.0;
    for (int32_t query = 0; query < 4; ++query) {
      const auto exact = ref::exact_scores(c.q.data() + query * kDim, c.keys.data(), c.num_tokens, kDim);
      for (int32_t token = 0; token < c.num_tokens; ++token) {
        const double slack = double{bounds[query][token]} - scores[query][token];
        closest = std::max(closest, (exact.value[token] - scores[query][token]) / slack);
      }
    }
    EXPECT_GT(closest, 0.5) << name;
    EXPECT_LE(closest, 1.0) << name;
  }
  // Pages of one key are exact.
  for (const std::string name : {"quest16:bound", "quest16:int8:bound"}) {
    const Case c(name, 64, 2, 16 * 20 + 1, DType::bf16, kSeed + 2);
    const auto bounds = c.bounds();
    for (int32_t query = 0; query < 2; ++query) {
      const auto exact = ref::exact_scores(c.q.data() + query * 64, c.keys.data(), c.num_tokens, 64);
      const double allowed = name == "quest16:bound" ? 1e-3 : 0.1;
      EXPECT_NEAR(bounds[query][16 * 20], exact.value[16 * 20], allowed * exact.magnitude[16 * 20] + allowed);
    }
  }
}

TEST(Bounds, AreNotOfferedWithoutTheOption) {
  for (const std::string name : {"quest16", "q2", "sign", "sign64", "pq16x4", "oracle", "quest16+q2"}) {
    EXPECT_FALSE((*make_selector(name, {1, 1, 1, 64, DType::bf16}))->has_bounds()) << name;
  }
}

}  // namespace
}  // namespace rarefy
