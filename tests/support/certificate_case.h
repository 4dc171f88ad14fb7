// Synthetic attention on which promises of error are kept or broken: logits of a chosen shape, scores that are off by chosen
// amounts, values of one or of many dimensions, put through SparseStep. A registered selector "emulated" reads the true logit and
// its own error from the keys: key 0 is the logit, key 1 the error of the score, key 2 how far the bound lies above the logit.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "rarefy/engine/sparse_step.h"

namespace rarefy::testing {

struct CertificateCase {
  enum class Shape { flat, spike, heavy, clustered };
  Shape shape = Shape::flat;
  double noise = 0.0;        // standard deviation of a score's error in nats
  bool line_values = false;  // values along one direction: the error is one normal number. Otherwise 64 dimensions
  int32_t kv_len = 8192;
  double needle_mass = 0.0;  // > 0: one token holds this share of the attention,
  double needle_nats = 0.0;  // and its score is this much too low
  uint32_t seed = 1;
};

std::string to_string(CertificateCase::Shape shape);

struct CertificateTally {
  int64_t pairs = 0;       // (draw, head)
  int64_t violations = 0;  // |out - dense| > eps |dense|
  double largest_error = 0.0;
  Traffic traffic;
  ListCounts lists;
};

class CertificateRun {
 public:
  static constexpr int32_t kHeads = 8;  // each with keys of its own

  explicit CertificateRun(const CertificateCase& problem);
  // Steps that differ in their random numbers only, every one of them audited.
  Expected<CertificateTally> run(const std::string& policy, int32_t draws);

 private:
  static constexpr int32_t kHeadDim = 64;
  SelectorShape shape_{1, kHeads, 1, kHeadDim, DType::f32};
  std::shared_ptr<KvCache> cache_;
  std::vector<KvSequence> sequence_;  // one
  std::vector<float> q_;              // [kHeads, kHeadDim] f32
};

}  // namespace rarefy::testing
