#include "rarefy/select/policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "rarefy/select/registry.h"

namespace rarefy {
namespace {

// The default recipe: what "50x" means besides its total (docs/adr/0008-default-recipe.md).
Policy default_recipe() {
  Policy policy;
  policy.dense = false;
  policy.index = "sign64";
  policy.spend = Spend::priority;
  return policy;
}

constexpr struct {
  std::string_view text;
  Spend spend;
} kSpends[] = {{"priority", Spend::priority}, {"topk", Spend::top_k},           {"half", Spend::half},
               {"uniform", Spend::uniform},   {"topp", Spend::top_p},           {"systematic", Spend::systematic},
               {"gumbel", Spend::gumbel},     {"vattention", Spend::vattention}};

// The shortest text that parses back to the same number.
std::string number_text(double value) {
  char buffer[32];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return {buffer, result.ptr};
}

bool parse_number(std::string_view text, double& value) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::general);
  return !text.empty() && result.ec == std::errc() && result.ptr == text.data() + text.size() && std::isfinite(value);
}

bool parse_integer(std::string_view text, int32_t& value) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  return !text.empty() && result.ec == std::errc() && result.ptr == text.data() + text.size();
}

Status bad_value(std::string_view key, std::string_view expected, std::string_view got) {
  return Status::invalid_argument(fmt::format("policy: {}: expected {}, got '{}'", key, expected, got));
}

// A whole number is a count of tokens; a number with a point or a per cent sign is a fraction.
Expected<Budget> parse_budget(std::string_view key, std::string_view text) {
  constexpr std::string_view kExpected =
      "a fraction above 0 and at most 1 (0.02), a percentage (2%) or a number of tokens (400)";
  Budget budget;
  const bool is_percentage = text.ends_with('%');
  int32_t tokens = 0;
  if (!is_percentage && parse_integer(text, tokens)) {
    if (tokens < 1) return bad_value(key, kExpected, text);
    budget.is_fraction = false;
    budget.value = tokens;
    return budget;
  }
  const std::string_view digits = is_percentage ? text.substr(0, text.size() - 1) : text;
  if (!parse_number(digits, budget.value)) return bad_value(key, kExpected, text);
  if (is_percentage) budget.value /= 100.0;
  if (!(budget.value > 0.0 && budget.value <= 1.0)) return bad_value(key, kExpected, text);
  return budget;
}

std::string budget_text(const Budget& budget) {
  if (!budget.is_fraction) return fmt::format("{}", static_cast<int64_t>(budget.value));
  const std::string text = number_text(budget.value);
  // "1" would read as one token.
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

Expected<int32_t> parse_count(std::string_view key, std::string_view text) {
  int32_t value = 0;
  if (!parse_integer(text, value) || value < 0) return bad_value(key, "a number of tokens of at least 0", text);
  return value;
}

// "3" or "2-5".
Expected<LayerOverride> parse_layer_range(std::string_view key, std::string_view text) {
  LayerOverride range;
  const size_t dash = text.find('-');
  const bool ok = parse_integer(text.substr(0, dash), range.first_layer) &&
                  (dash == std::string_view::npos ? (range.last_layer = range.first_layer, true)
                                                  : parse_integer(text.substr(dash + 1), range.last_layer));
  if (!ok || range.first_layer < 0 || range.last_layer < range.first_layer) {
    return bad_value(key, "a layer (3) or a range of layers (2-5)", text);
  }
  return range;
}

// "0,1,4-6".
Status parse_dense_layers(std::string_view text, Policy& policy) {
  while (true) {
    const size_t comma = text.find(',');
    RAREFY_ASSIGN_OR_RETURN(LayerOverride range, parse_layer_range("dense_layers", text.substr(0, comma)));
    range.dense = true;
    policy.overrides.push_back(range);
    if (comma == std::string_view::npos) return {};
    text.remove_prefix(comma + 1);
  }
}

Status apply(std::string_view key, std::string_view value, Policy& policy) {
  if (key == "total") {
    RAREFY_ASSIGN_OR_RETURN(policy.total, parse_budget(key, value));
  } else if (key.starts_with("total@")) {
    RAREFY_ASSIGN_OR_RETURN(LayerOverride range, parse_layer_range(key, key.substr(6)));
    RAREFY_ASSIGN_OR_RETURN(range.total, parse_budget(key, value));
    // The same layers under another spelling, total@1 and total@1-1.
    for (const LayerOverride& other : policy.overrides) {
      if (!other.dense && other.first_layer == range.first_layer && other.last_layer == range.last_layer) {
        return Status::invalid_argument(fmt::format("policy: '{}' is given twice", key));
      }
    }
    policy.overrides.push_back(range);
  } else if (key == "sink") {
    RAREFY_ASSIGN_OR_RETURN(policy.sink, parse_count(key, value));
  } else if (key == "local") {
    RAREFY_ASSIGN_OR_RETURN(policy.local, parse_count(key, value));
  } else if (key == "min") {
    RAREFY_ASSIGN_OR_RETURN(policy.min_kv_len, parse_count(key, value));
  } else if (key == "index") {
    if (value.empty()) return bad_value(key, "the name of a selector ('rarefy policy list' shows them)", value);
    policy.index = value;
  } else if (key == "spend") {
    const auto found = std::find_if(std::begin(kSpends), std::end(kSpends), [&](const auto& s) { return s.text == value; });
    if (found == std::end(kSpends))
      return bad_value(key, "priority, topk, half, uniform, topp, systematic, gumbel or vattention", value);
    policy.spend = found->spend;
  } else if (key == "floor") {
    if (!parse_number(value, policy.floor) || policy.floor < 0.0 || policy.floor >= 1.0) {
      return bad_value(key, "a share of at least 0 and below 1", value);
    }
  } else if (key == "dense_layers") {
    return parse_dense_layers(value, policy);
  } else if (key == "p") {
    if (!parse_number(value, policy.top_p) || policy.top_p <= 0.0 || policy.top_p >= 1.0) {
      return bad_value(key, "a share of the estimated probability above 0 and below 1", value);
    }
  } else if (key == "eps") {
    if (!parse_number(value, policy.eps) || policy.eps <= 0.0 || policy.eps >= 1.0) {
      return bad_value(key, "a relative error above 0 and below 1", value);
    }
  } else if (key == "delta") {
    if (!parse_number(value, policy.delta) || policy.delta < 1e-6 || policy.delta > 0.5) {
      return bad_value(key, "a share of violations from 1e-6 to 0.5", value);
    }
  } else if (key == "max") {
    RAREFY_ASSIGN_OR_RETURN(policy.max, parse_budget(key, value));
  } else if (key == "certify") {
    if (value != "estimated" && value != "bounded") return bad_value(key, "estimated or bounded", value);
    policy.certify = value == "bounded" ? Certify::bounded : Certify::estimated;
  } else {
    return Status::invalid_argument(fmt::format(
        "policy: unknown key '{}'; expected total, total@LAYERS, sink, local, index, spend, floor, p, eps, delta, max, "
        "certify, min or dense_layers",
        key));
  }
  return {};
}

// Keys that do not go together.
Status check_keys(const Policy& policy, const std::set<std::string, std::less<>>& seen) {
  const std::string spend(to_string(policy.spend));
  if (policy.spend != Spend::top_p && seen.contains("p")) {
    return Status::invalid_argument("policy: p= belongs to spend=topp, got spend=" + spend);
  }
  if (policy.eps == 0.0) {
    for (const char* key : {"delta", "max", "certify"}) {
      if (!seen.contains(key)) continue;
      return Status::invalid_argument(
          fmt::format("policy: {}= says how eps= is kept; add eps= or leave {}= out", key, key));
    }
    if (policy.spend == Spend::vattention) {
      return Status::invalid_argument("policy: spend=vattention sizes its sample by eps= and delta=; add eps=");
    }
    return {};
  }
  if (policy.certify == Certify::bounded) {
    if (policy.spend != Spend::top_k) {
      return Status::invalid_argument(
          "policy: certify=bounded bounds what a list leaves out; expected spend=topk, got spend=" + spend);
    }
    if (seen.contains("delta")) {
      return Status::invalid_argument("policy: certify=bounded allows no violation; leave delta= out");
    }
  } else if (!is_sampled(policy.spend)) {
    return Status::invalid_argument("policy: eps= needs a certificate, and spend=" + spend +
                                    " draws nothing that could give one; use spend=priority, or certify=bounded with "
                                    "spend=topk");
  }
  const auto too_large = [&](const Budget& total) {
    return total.is_fraction == policy.max.is_fraction && total.value > policy.max.value;
  };
  bool refused = too_large(policy.total);
  for (const LayerOverride& special : policy.overrides) refused = refused || (!special.dense && too_large(special.total));
  if (refused) {
    return Status::invalid_argument(
        fmt::format("policy: max={} is the cap of a list under eps=, and a total starts above it; "
                    "raise max= or lower the total",
                    budget_text(policy.max)));
  }
  return {};
}

// "50x" or "7.5x".
bool parse_sparsity(std::string_view word, double& sparsity) {
  return word.size() > 1 && word.ends_with('x') && parse_number(word.substr(0, word.size() - 1), sparsity);
}

}  // namespace

std::string_view to_string(Spend spend) {
  for (const auto& entry : kSpends) {
    if (entry.spend == spend) return entry.text;
  }
  return "unknown";
}

bool is_sampled(Spend spend) { return spend != Spend::top_k && spend != Spend::top_p; }

int32_t Budget::tokens(int32_t kv_len) const {
  const double tokens = is_fraction ? value * kv_len : value;
  return static_cast<int32_t>(std::clamp(std::round(tokens), 1.0, std::max(1.0, static_cast<double>(kv_len))));
}

Expected<Policy> Policy::parse(std::string_view text) {
  Policy policy = default_recipe();
  std::set<std::string, std::less<>> seen;
  bool has_total = false, is_first = true, is_dense = false;
  constexpr std::string_view kBlank = " \t\n\r";
  for (size_t at = text.find_first_not_of(kBlank); at != std::string_view::npos; is_first = false) {
    const size_t end = std::min(text.find_first_of(kBlank, at), text.size());
    const std::string_view word = text.substr(at, end - at);
    at = text.find_first_not_of(kBlank, end);
    if (is_dense) return Status::invalid_argument(fmt::format("policy: 'dense' takes no further words, got '{}'", word));
    const size_t equals = word.find('=');
    double sparsity = 0.0;
    if (is_first && word == "dense") {
      is_dense = true;
    } else if (is_first && parse_sparsity(word, sparsity)) {
      if (sparsity < 1.0) return bad_value("sparsity", "at least 1x", word);
      policy.total = {true, 1.0 / sparsity};
      has_total = true;
      seen.emplace("total");
    } else if (equals == std::string_view::npos) {
      return Status::invalid_argument(fmt::format("policy: word '{}': expected key=value{}", word,
                                                  is_first ? ", a sparsity such as 50x, or dense" : ""));
    } else {
      const std::string_view key = word.substr(0, equals);
      if (!seen.emplace(key).second) return Status::invalid_argument(fmt::format("policy: '{}' is given twice", key));
      RAREFY_RETURN_IF_ERROR(apply(key, word.substr(equals + 1), policy));
      has_total = has_total || key == "total";
    }
  }
  if (is_dense) return Policy{};
  if (!has_total) {
    return Status::invalid_argument(
        "policy: expected a budget (total=0.02 or total=400), a sparsity such as 50x, or dense; got '" + std::string(text) +
        "'");
  }
  RAREFY_RETURN_IF_ERROR(check_keys(policy, seen));
  // The order in which to_string() writes them; dense layers win over totals whatever the order.
  std::stable_partition(policy.overrides.begin(), policy.overrides.end(), [](const LayerOverride& o) { return o.dense; });
  return policy;
}

std::string Policy::to_string() const {
  if (dense) return "dense";
  std::string text = fmt::format("total={} sink={} local={} index={} spend={}", budget_text(total), sink, local, index,
                                 rarefy::to_string(spend));
  if (spend == Spend::top_p) text += " p=" + number_text(top_p);
  if (floor > 0.0) text += " floor=" + number_text(floor);
  if (eps > 0.0) {
    text += " eps=" + number_text(eps);
    text += certify == Certify::bounded ? std::string(" certify=bounded") : " delta=" + number_text(delta);
    text += " max=" + budget_text(max);
  }
  text += fmt::format(" min={}", min_kv_len);
  std::string dense_layers, totals;
  for (const LayerOverride& special : overrides) {
    std::string range = fmt::format("{}", special.first_layer);
    if (special.last_layer != special.first_layer) range += fmt::format("-{}", special.last_layer);
    if (special.dense) {
      dense_layers += (dense_layers.empty() ? " dense_layers=" : ",") + range;
    } else {
      totals += fmt::format(" total@{}={}", range, budget_text(special.total));
    }
  }
  return text + dense_layers + totals;
}

namespace {

// The override that decides for a layer, or null: a dense one, else the last total that names it.
const LayerOverride* find_override(const Policy& policy, int32_t layer) {
  const LayerOverride* found = nullptr;
  for (const LayerOverride& special : policy.overrides) {
    if (layer < special.first_layer || layer > special.last_layer) continue;
    if (special.dense) return &special;
    found = &special;
  }
  return found;
}

}  // namespace

bool Policy::layer_is_dense(int32_t layer, int32_t kv_len) const {
  if (dense || kv_len < min_kv_len) return true;
  const LayerOverride* special = find_override(*this, layer);
  if (special != nullptr && special->dense) return true;
  return (special != nullptr ? special->total : total).tokens(kv_len) >= kv_len;
}

int32_t Policy::total_tokens(int32_t layer, int32_t kv_len) const {
  const LayerOverride* special = find_override(*this, layer);
  return (special != nullptr ? special->total : total).tokens(kv_len);
}

int32_t Policy::max_tokens(int32_t layer, int32_t kv_len) const {
  const int32_t total_of_layer = total_tokens(layer, kv_len);
  return eps > 0.0 ? std::max(total_of_layer, max.tokens(kv_len)) : total_of_layer;
}

Status Policy::check(int32_t num_layers) const {
  if (dense) return {};
  for (const LayerOverride& special : overrides) {
    if (special.last_layer >= num_layers) {
      return Status::invalid_argument(
          fmt::format("policy: layer {} does not exist; the model has layers 0 to {}", special.last_layer, num_layers - 1));
    }
  }
  return check_selector_names(index).with_context(fmt::format("policy: index={}", index));
}

TokenBudget split_budget(const Policy& policy, int32_t layer, int32_t kv_len) {
  TokenBudget budget;
  budget.total = policy.total_tokens(layer, kv_len);
  const int32_t quarter = budget.total / 4;
  budget.sink = std::min(policy.sink, quarter);
  budget.local = std::min(policy.local, quarter - budget.sink);
  budget.selected = budget.total - budget.sink - budget.local;
  return budget;
}

}  // namespace rarefy
