#include "scoring.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace rarefy::cli {
namespace {

double log_sum_exp(std::span<const float> logits) {  // logits: [vocab_size] f32
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum);
}

}  // namespace

void PassageScores::add(std::span<const float> dense, std::span<const float> logits, int32_t target) {
  const double dense_sum = log_sum_exp(dense), sum = log_sum_exp(logits);
  losses.push_back(sum - static_cast<double>(logits[static_cast<size_t>(target)]));
  double divergence = 0.0;
  for (size_t i = 0; i < dense.size(); ++i) {
    const double p = static_cast<double>(dense[i]) - dense_sum;
    if (std::isinf(p)) continue;
    divergence += std::exp(p) * (p - (static_cast<double>(logits[i]) - sum));
  }
  divergences.push_back(std::max(0.0, divergence));  // rounding can leave a crumb below 0
  const auto top = [](std::span<const float> row) {
    return std::max_element(row.begin(), row.end()) - row.begin();
  };  // row: [vocab_size] f32
  same_top += top(dense) == top(logits) ? 1 : 0;
}

void PassageScores::add(const PassageScores& other) {
  losses.insert(losses.end(), other.losses.begin(), other.losses.end());
  divergences.insert(divergences.end(), other.divergences.begin(), other.divergences.end());
  same_top += other.same_top;
}

double PassageScores::same_top_share() const {
  return losses.empty() ? 1.0 : static_cast<double>(same_top) / static_cast<double>(losses.size());
}

nlohmann::json PassageScores::to_json() const {
  return {{"losses", losses}, {"divergences", divergences}, {"same_top", same_top}};
}

PassageScores PassageScores::from_json(const nlohmann::json& json) {
  PassageScores scores;
  scores.losses = json.at("losses").get<std::vector<double>>();
  scores.divergences = json.at("divergences").get<std::vector<double>>();
  scores.same_top = json.at("same_top");
  return scores;
}

}  // namespace rarefy::cli
