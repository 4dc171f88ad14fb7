#include "run_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "terminal.h"

namespace rarefy::cli {
namespace {

std::string speed_line(const char* label, int64_t tokens, double seconds) {
  if (tokens == 0) return {};
  return fmt::format("  {:<18}{} tokens in {}, {:.1f} tokens/s\n", label, format_count(tokens), format_seconds(seconds),
                     seconds > 0.0 ? static_cast<double>(tokens) / seconds : 0.0);
}

// "name=value name=value ..." broken at spaces, so that long policies stay readable.
std::string wrapped(const std::string& text, int32_t width, const std::string& indent) {
  std::string result;
  int32_t used = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (used > 0 && used + 1 + display_width(word) > width) {
      result += "\n" + indent;
      used = 0;
    }
    if (used > 0) result += ' ', ++used;
    result += word;
    used += display_width(word);
    begin = end + 1;
  }
  return result;
}

}  // namespace

std::string error_text(const QuantileSketch& errors) {
  if (errors.count() == 0) return "none";
  return fmt::format("median {:.3f}, 95 % {:.3f}, max {:.3f}", errors.quantile(0.5), errors.quantile(0.95), errors.max());
}

std::string lists_text(const ListCounts& lists) {
  const double total = static_cast<double>(std::max<int64_t>(lists.total(), 1));
  const auto percent = [&](int64_t count) { return 100.0 * static_cast<double>(count) / total; };
  return fmt::format("{} lists: first budget {:.1f} %, enlarged {:.1f} %, at max {:.1f} %, dense {:.1f} %",
                     format_count(lists.total()), percent(lists.first), percent(lists.enlarged), percent(lists.capped),
                     percent(lists.dense));
}

std::string promise_text(const PromiseCounts& promise) {
  const RateLimits limits = rate_limits(promise.violations, promise.pairs);
  return fmt::format("{:.2f} % of {} pairs err by more than {} (95 %: at most {:.2f} %); promised {} %",
                     100.0 * promise.rate(), format_count(promise.pairs), promise.eps, 100.0 * limits.upper,
                     100.0 * promise.delta);
}

std::string run_table(const RunStats& prefill, const RunStats& decode) {
  const Traffic& traffic = decode.traffic;
  std::string text = speed_line("prefill (dense)", prefill.prefill_tokens, prefill.prefill_seconds);
  text += speed_line("decode", decode.decode_tokens, decode.decode_seconds);
  if (decode.policy.empty()) return text;
  text += fmt::format("  {:<18}{}\n", "policy", wrapped(decode.policy, 58, std::string(20, ' ')));
  if (decode.decode_tokens == 0) return text;
  text += fmt::format("  {:<18}{:.4f} of the cached tokens\n", "density", traffic.density());
  text += fmt::format("  {:<18}{:.4f} of the KV bytes of dense attention, index included\n", "bytes_ratio",
                      traffic.bytes_ratio());
  const int64_t steps = traffic.dense_layer_steps + traffic.sparse_layer_steps;
  if (traffic.sparse_layer_steps > 0 && traffic.dense_layer_steps > 0) {
    text += fmt::format("  {:<18}{} of {} (layer, step) pairs\n", "ran dense", format_count(traffic.dense_layer_steps),
                        format_count(steps));
  }
  if (traffic.sparse_layer_steps > 0)
    text += fmt::format("  {:<18}{}\n", "error, estimated", error_text(decode.estimated_error));
  if (decode.bounded_error.count() > 0)
    text += fmt::format("  {:<18}{}\n", "error, bounded", error_text(decode.bounded_error));
  if (decode.lists.total() > 0)
    text += fmt::format("  {:<18}{}\n", "lists, eps", wrapped(lists_text(decode.lists), 58, std::string(20, ' ')));
  const AuditStats& audit = decode.audit;
  if (audit.layer_steps > 0) {
    text += fmt::format("  {:<18}{}\n", "error, audited", error_text(audit.error));
    text += fmt::format("  {:<18}{} pairs in {}; worst: layer {}, head {}, position {}\n", "audits",
                        format_count(audit.layer_steps), format_seconds(decode.audit_seconds), audit.worst.layer,
                        audit.worst.head, format_count(audit.worst.position));
    text += fmt::format("  {:<18}median {:.3f} of the attention\n", "mass, audited", audit.mass.quantile(0.5));
    if (audit.promise.pairs > 0) {
      text += fmt::format("  {:<18}{}\n", "eps, audited", wrapped(promise_text(audit.promise), 58, std::string(20, ' ')));
    }
    if (audit.certificate_pairs > 0) {
      text += fmt::format(
          "  {:<18}{:.1f} % of audited errors within 1.96 x estimated\n", "certificate",
          100.0 * static_cast<double>(audit.certificate_covered) / static_cast<double>(audit.certificate_pairs));
    }
  }
  return text;
}

std::string_view stop_reason_text(StopReason reason) {
  switch (reason) {
    case StopReason::stop_token: return "stop_token";
    case StopReason::max_new_tokens: return "max_new_tokens";
    case StopReason::context_full: return "context_full";
    case StopReason::cancelled: return "cancelled";
  }
  return "unknown";
}

std::string sparsity_warning(const Policy& policy, const Traffic& traffic, int32_t kv_len) {
  if (policy.dense || traffic.tokens_cached == 0 || kv_len == 0) return {};
  if (policy.eps > 0.0) return {};  // the total is a first budget, not a promise; what became of it stands in the table
  const double asked = static_cast<double>(kv_len) / policy.total.tokens(kv_len);
  const double reached = 1.0 / traffic.density();
  if (reached >= 0.9 * asked) return {};
  std::string why = "see rarefy policy explain";
  if (traffic.sparse_layer_steps == 0) {
    why = fmt::format("every step ran dense: the policy starts at min={} cached tokens", policy.min_kv_len);
  } else if (traffic.dense_layer_steps > 0) {
    why = "some layers or steps ran dense (dense_layers=, min=)";
  }
  return fmt::format("the sparsity reached is {:.1f}x, less than 90 % of the {:.1f}x asked for; {}", reached, asked, why);
}

}  // namespace rarefy::cli
