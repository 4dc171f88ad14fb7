// Are promises of error kept? Runs the (epsilon, delta) rule, the missed needle and the bounded mode on synthetic attention through
// the same SparseStep as the engine, and prints one JSON line for each setting (results/certificates.jsonl):
//
//   bench_certificates [REALISATIONS] [DRAWS] > results/certificates.jsonl
//
// A line's pairs are REALISATIONS x DRAWS x 8 heads; pairs of one realisation share keys and values and differ in their random
// numbers. docs/certificate.md shows the numbers.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "run_record.h"
#include "tests/support/certificate_case.h"

namespace {

using rarefy::testing::CertificateCase;
using rarefy::testing::CertificateRun;
using rarefy::testing::CertificateTally;

struct Size {
  int32_t realisations = 8, draws = 40;
};

void print(const char* part, const CertificateCase& problem, const std::string& policy, const CertificateTally& all);

// One line for each policy; all of them see the same keys and values.
void run(const char* part, CertificateCase problem, const std::vector<std::string>& policies, const Size& size) {
  std::vector<CertificateTally> tallies(policies.size());
  for (int32_t realisation = 0; realisation < size.realisations; ++realisation) {
    problem.seed = static_cast<uint32_t>(realisation + 1);
    CertificateRun one(problem);
    for (size_t i = 0; i < policies.size(); ++i) {
      // Nothing is random in bounded mode: one draw says it all.
      const int32_t draws = policies[i].find("bounded") != std::string::npos ? 1 : size.draws;
      const auto tally = one.run(policies[i], draws);
      if (!tally) {
        std::fprintf(stderr, "bench_certificates: %s: %s\n", policies[i].c_str(), tally.status().to_string().c_str());
        std::exit(1);
      }
      CertificateTally& all = tallies[i];
      all.pairs += tally->pairs;
      all.violations += tally->violations;
      all.largest_error = std::max(all.largest_error, tally->largest_error);
      all.traffic.add(tally->traffic);
      all.lists.merge(tally->lists);
    }
  }
  for (size_t i = 0; i < policies.size(); ++i) print(part, problem, policies[i], tallies[i]);
}

void print(const char* part, const CertificateCase& problem, const std::string& policy, const CertificateTally& all) {
  const rarefy::Policy parsed = *rarefy::Policy::parse(policy);
  const rarefy::RateLimits limits = rarefy::rate_limits(all.violations, all.pairs);
  const auto share = [&](int64_t lists) { return static_cast<double>(lists) / static_cast<double>(all.lists.total()); };
  auto record = rarefy::cli::new_record("certificates");
  record["part"] = part;
  record["shape"] = to_string(problem.shape);
  record["score_noise_nats"] = problem.noise;
  record["values"] = problem.line_values ? "one direction" : "64 dimensions";
  if (problem.needle_mass > 0.0) {
    record["needle_mass"] = problem.needle_mass;
    record["needle_nats"] = problem.needle_nats;
  }
  record["kv_len"] = problem.kv_len;
  record["policy"] = policy;
  record["policy_resolved"] = parsed.to_string();
  record["spend"] = rarefy::to_string(parsed.spend);
  record["certify"] = parsed.certify == rarefy::Certify::bounded ? "bounded" : "estimated";
  record["eps"] = parsed.eps;
  record["delta"] = parsed.certify == rarefy::Certify::bounded ? 0.0 : parsed.delta;
  record["pairs"] = all.pairs;
  record["violations"] = all.violations;
  record["violation_rate_audited"] = static_cast<double>(all.violations) / static_cast<double>(all.pairs);
  record["violation_rate_upper_95"] = limits.upper;
  record["largest_error_audited"] = all.largest_error;
  record["accepted"] = 1.0 - share(all.lists.dense);
  record["first"] = share(all.lists.first);
  record["enlarged"] = share(all.lists.enlarged);
  record["capped"] = share(all.lists.capped);
  record["dense"] = share(all.lists.dense);
  record["density"] = all.traffic.density();
  record["bytes_ratio"] = all.traffic.bytes_ratio();
  rarefy::cli::append_origin(record);
  std::printf("%s\n", record.dump().c_str());
  std::fflush(stdout);
}

std::string promise(double eps, double delta) {
  return " eps=" + nlohmann::json(eps).dump() + " delta=" + nlohmann::json(delta).dump() + " max=0.1";
}

}  // namespace

int main(int argc, char** argv) {
  rarefy::cli::set_command_line(argc, argv);
  Size size;
  if (argc > 1) size.realisations = std::atoi(argv[1]);
  if (argc > 2) size.draws = std::atoi(argv[2]);
  if (size.realisations < 1 || size.draws < 1) {
    std::fprintf(stderr, "bench_certificates: expected [REALISATIONS] [DRAWS], both at least 1\n");
    return 2;
  }
  using Shape = CertificateCase::Shape;
  for (const bool line_values : {true, false}) {
    for (const Shape shape : {Shape::flat, Shape::spike, Shape::heavy, Shape::clustered}) {
      for (const double noise : {0.0, 0.5, 1.0}) {
        CertificateCase problem;
        problem.shape = shape;
        problem.noise = noise;
        problem.line_values = line_values;
        std::vector<std::string> policies;
        for (const auto& [eps, delta] : {std::pair{0.2, 0.1}, std::pair{0.2, 0.05}, std::pair{0.1, 0.1}}) {
          policies.push_back("total=0.02 index=emulated spend=priority" + promise(eps, delta));
        }
        for (const char* spend : {"half", "gumbel", "uniform", "systematic", "vattention"}) {
          policies.push_back("total=0.02 index=emulated spend=" + std::string(spend) + promise(0.2, 0.1));
        }
        run("promise", problem, policies, size);
      }
    }
  }
  for (const double mass : {0.1, 0.3, 0.5, 0.7, 0.9}) {
    for (const double nats : {2.0, 4.0, 6.0, 8.0, 10.0}) {
      CertificateCase problem;
      problem.shape = Shape::heavy;
      problem.needle_mass = mass;
      problem.needle_nats = nats;
      run("needle", problem,
          {"total=0.02 index=emulated spend=priority" + promise(0.2, 0.1),
           "total=0.02 index=emulated spend=priority floor=0.1" + promise(0.2, 0.1),
           "total=0.02 index=emulated spend=topk eps=0.2 max=0.5 certify=bounded",
           "total=0.02 index=quest16:bound spend=topk eps=0.2 max=0.5 certify=bounded"},
          size);
    }
  }
  return 0;
}
