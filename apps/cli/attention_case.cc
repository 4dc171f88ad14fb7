#include "attention_case.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "failure.h"
#include "rarefy/model/known_models.h"

namespace rarefy::cli {
namespace {

template <typename T>
T parse_number(std::string_view key, std::string_view value, T least, T most, const std::string& where) {
  T number{};
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || end != value.data() + value.size() || !(number >= least && number <= most)) {
    fail(ExitCode::usage, fmt::format("{}: {}: expected a number from {} to {}, got '{}'", where, key, least, most, value));
  }
  return number;
}

DType parse_float_dtype(std::string_view key, std::string_view value, const std::string& where) {
  const Expected<DType> dtype = parse_dtype(value);
  if (!dtype || (*dtype != DType::f32 && *dtype != DType::f16 && *dtype != DType::bf16)) {
    fail(ExitCode::usage, fmt::format("{}: {}: expected f32, f16 or bf16, got '{}'", where, key, value));
  }
  return *dtype;
}

}  // namespace

int32_t AttentionBenchCase::num_selected() const {
  return std::clamp(static_cast<int32_t>(std::lround(kv_len / sparsity)), 1, kv_len);
}

std::string AttentionBenchCase::to_string() const {
  std::string text = fmt::format(
      "num_q_heads={} num_kv_heads={} head_dim={} kv_dtype={} q_dtype={} page_size={} kv_len={} batch={} sparsity={}",
      num_q_heads, num_kv_heads, head_dim, rarefy::to_string(kv_dtype), rarefy::to_string(q_dtype), page_size, kv_len,
      batch, sparsity);
  for (const std::string& policy : policies) text += fmt::format(" policy={}", policy);
  return text;
}

AttentionBenchCase parse_attention_case(std::string_view text, const std::string& where) {
  AttentionBenchCase result;
  while (true) {
    text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
    if (text.empty()) break;
    // A policy may hold spaces: it goes on to the end of its quotes.
    const size_t equals = text.find('=');
    if (equals == std::string_view::npos) {
      fail(ExitCode::usage, fmt::format("{}: expected field=value, got '{}'", where, text));
    }
    const std::string_view key = text.substr(0, equals);
    text.remove_prefix(equals + 1);
    const bool quoted = text.starts_with('\'');
    if (quoted) text.remove_prefix(1);
    const size_t end = std::min(text.find_first_of(quoted ? "'" : " \t"), text.size());
    const std::string_view value = text.substr(0, end);
    text.remove_prefix(std::min(end + (quoted ? 1 : 0), text.size()));
    const auto number = [&](int32_t most) { return parse_number<int32_t>(key, value, 1, most, where); };
    if (key == "model") {
      const KnownModel* model = find_known_model(value);
      if (model == nullptr) {
        fail(ExitCode::usage, fmt::format("{}: model: expected one that rarefy models lists, got '{}'", where, value));
      }
      result.num_q_heads = model->num_q_heads;
      result.num_kv_heads = model->num_kv_heads;
      result.head_dim = model->head_dim;
    } else if (key == "num_q_heads") {
      result.num_q_heads = number(4096);
    } else if (key == "num_kv_heads") {
      result.num_kv_heads = number(4096);
    } else if (key == "head_dim") {
      result.head_dim = number(256);
    } else if (key == "page_size") {
      result.page_size = number(256);
    } else if (key == "kv_len") {
      result.kv_len = number(1 << 24);
    } else if (key == "batch") {
      result.batch = number(1024);
    } else if (key == "sparsity") {
      result.sparsity = parse_number<double>(key, value, 1.0, 1e6, where);
    } else if (key == "kv_dtype") {
      result.kv_dtype = parse_float_dtype(key, value, where);
    } else if (key == "q_dtype") {
      result.q_dtype = parse_float_dtype(key, value, where);
    } else if (key == "policy") {
      result.policies.emplace_back(value);
    } else {
      fail(ExitCode::usage,
           fmt::format(
               "{}: expected model, num_q_heads, num_kv_heads, head_dim, kv_dtype, q_dtype, page_size, kv_len, batch, "
               "sparsity or policy, got '{}'",
               where, key));
    }
  }
  return result;
}

std::vector<AttentionBenchCase> parse_attention_cases(std::string_view text, const std::string& name) {
  std::vector<AttentionBenchCase> cases;
  for (int32_t line = 1; !text.empty(); ++line) {
    const size_t end = text.find('\n');
    std::string_view content = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
    content = content.substr(0, content.find('#'));
    if (content.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    content = content.substr(0, content.find_last_not_of(" \t\r") + 1);
    cases.push_back(parse_attention_case(content, fmt::format("{}:{}", name, line)));
  }
  if (cases.empty()) fail(ExitCode::usage, fmt::format("{}: expected at least one case, got none", name));
  return cases;
}

}  // namespace rarefy::cli
