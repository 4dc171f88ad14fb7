// Promises of error (docs/certificate.md): kept at the promised rate on average scores, kept always in bounded mode, and a missed
// needle fools the certificate as documented. bench/certificates.cc measures the same at length.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/certificate_case.h"

namespace rarefy::testing {
namespace {

using Shape = CertificateCase::Shape;

CertificateTally tally(const CertificateCase& problem, const std::string& policy, int32_t draws) {
  CertificateRun run(problem);
  auto result = run.run(policy, draws);
  EXPECT_TRUE(result) << policy << ": " << result.status().to_string();
  return result ? *result : CertificateTally{};
}

TEST(Promise, IsKeptUpToTheShareOfViolations) {
  const std::vector<std::string> spends = {"priority", "half", "gumbel"};
  for (const Shape shape : {Shape::flat, Shape::spike, Shape::heavy, Shape::clustered}) {
    for (const double noise : {0.0, 1.0}) {
      CertificateCase problem;
      problem.shape = shape;
      problem.noise = noise;
      problem.line_values = true;
      problem.kv_len = 4096;
      std::vector<CertificateTally> all(spends.size());
      for (problem.seed = 1; problem.seed <= 3; ++problem.seed) {
        CertificateRun run(problem);
        for (size_t i = 0; i < spends.size(); ++i) {
          const auto one = run.run("total=0.04 index=emulated eps=0.2 delta=0.1 max=0.2 spend=" + spends[i], 25);
          ASSERT_TRUE(one) << one.status().to_string();
          all[i].pairs += one->pairs;
          all[i].violations += one->violations;
          all[i].lists.merge(one->lists);
        }
      }
      for (size_t i = 0; i < spends.size(); ++i) {
        ASSERT_EQ(all[i].pairs, 600);
        EXPECT_EQ(all[i].lists.total(), all[i].pairs);
        const double limit = 0.1 + 3 * std::sqrt(0.1 * 0.9 / static_cast<double>(all[i].pairs));
        EXPECT_LE(static_cast<double>(all[i].violations) / static_cast<double>(all[i].pairs), limit)
            << to_string(shape) << " noise " << noise << " " << spends[i];
      }
    }
  }
}

TEST(Promise, EveryPassCounts) {
  CertificateCase problem;
  problem.kv_len = 4096;
  const CertificateTally plain = tally(problem, "total=0.04 index=emulated spend=priority", 4);
  const CertificateTally judged = tally(problem, "total=0.04 index=emulated spend=priority eps=0.1 delta=0.1 max=0.05", 4);
  EXPECT_EQ(plain.lists.total(), 0) << "nothing is judged without eps";
  EXPECT_EQ(plain.traffic.tokens_read, 4 * 8 * 164);
  // Flat logits want far more than max: all lists are dense after the first attempt, and dense is exact.
  EXPECT_EQ(judged.lists.dense, 4 * 8);
  EXPECT_EQ(judged.violations, 0);
  EXPECT_LT(judged.largest_error, 1e-4);
  EXPECT_EQ(judged.traffic.tokens_read, 4 * 8 * (164 + 4096));
  EXPECT_EQ(judged.traffic.row_bytes, 4 * 8 * (164 + 4096) * int64_t{2 * 64 * 4});
}

TEST(Promise, SampleOfVAttentionKeepsIt) {
  for (const Shape shape : {Shape::flat, Shape::heavy, Shape::clustered}) {
    CertificateCase problem;
    problem.shape = shape;
    problem.line_values = true;
    problem.kv_len = 4096;
    const CertificateTally all = tally(problem, "total=0.1 index=emulated spend=vattention eps=0.3 delta=0.1 max=0.9", 100);
    EXPECT_LE(static_cast<double>(all.violations) / static_cast<double>(all.pairs), 0.1) << to_string(shape);
    EXPECT_LT(all.lists.dense, all.lists.total()) << to_string(shape) << ": or nothing was tested";
  }
}

// A token with half of the mass, scored as an average one: the certificate accepts what is wrong, and only the bound does not.
TEST(MissedNeedle, FoolsTheCertificateButNotTheBound) {
  CertificateCase problem;
  problem.shape = Shape::heavy;
  problem.needle_mass = 0.5;
  problem.needle_nats = 8.0;
  const CertificateTally estimated =
      tally(problem, "total=0.02 index=emulated spend=priority eps=0.2 delta=0.1 max=0.2", 20);
  EXPECT_GT(estimated.violations, estimated.pairs / 2);
  for (const char* index : {"emulated", "quest16:bound"}) {
    for (const double mass : {0.1, 0.5, 0.9}) {
      for (const double nats : {2.0, 10.0}) {
        problem.needle_mass = mass;
        problem.needle_nats = nats;
        const CertificateTally bounded =
            tally(problem, "total=0.02 spend=topk eps=0.2 max=0.5 certify=bounded index=" + std::string(index), 1);
        EXPECT_EQ(bounded.violations, 0) << index << " mass " << mass << " nats " << nats;
        EXPECT_EQ(bounded.lists.total(), 8);
      }
    }
  }
}

// Logits that leave little outside: the bound accepts lists, and they keep it.
TEST(Bounded, AcceptsListsThatHoldNearlyEverything) {
  CertificateCase problem;
  problem.kv_len = 4096;
  problem.needle_mass = 0.999;
  const CertificateTally all = tally(problem, "total=0.1 spend=topk eps=0.2 max=0.9 certify=bounded index=emulated", 1);
  EXPECT_EQ(all.violations, 0);
  EXPECT_GT(all.lists.first, 0);
  EXPECT_GT(all.largest_error, 1e-5) << "or the lists were dense";
}

TEST(Promise, RefusesWhatCannotBeKept) {
  CertificateCase problem;
  problem.kv_len = 1024;
  CertificateRun run(problem);
  const auto bounded = run.run("total=0.1 spend=topk eps=0.2 certify=bounded index=sign", 1);
  ASSERT_FALSE(bounded);
  EXPECT_NE(bounded.status().message().find("bounds the error of its scores"), std::string::npos);
}

}  // namespace
}  // namespace rarefy::testing
