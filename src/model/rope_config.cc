#include "model/rope_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/config_fields.h"

namespace rarefy::model {
namespace {

constexpr double kDefaultTheta = 10000.0;
constexpr double kMaxTheta = 1e12;
constexpr double kMaxFactor = 1e6;
constexpr int32_t kMaxPosition = 1 << 30;

// omega_j = theta^(-2 j / rotary_dim)
std::vector<double> base_frequencies(double theta, int32_t rotary_dim) {
  std::vector<double> frequencies(static_cast<std::size_t>(rotary_dim / 2));
  for (std::size_t j = 0; j < frequencies.size(); ++j) {
    frequencies[j] = std::pow(theta, -2.0 * static_cast<double>(j) / rotary_dim);
  }
  return frequencies;
}

void apply_linear(Fields& fields, std::vector<double>& frequencies) {
  const double factor = fields.number("factor", 1.0, 1.0, kMaxFactor);
  for (double& frequency : frequencies) frequency /= factor;
}

// Long wavelengths are divided by the factor, short ones kept, those between blended.
void apply_llama3(Fields& fields, int32_t max_position_embeddings, std::vector<double>& frequencies) {
  const double factor = fields.number("factor", 1.0, 1.0, kMaxFactor);
  const double low = fields.number("low_freq_factor", 1.0, 1e-6, kMaxFactor);
  const double high = fields.number("high_freq_factor", 4.0, 1e-6, kMaxFactor);
  const double original = fields.integer("original_max_position_embeddings", max_position_embeddings, 1, kMaxPosition);
  if (high <= low) fields.fail("expected high_freq_factor above low_freq_factor in the llama3 rope settings");
  if (!fields.status().ok()) return;
  for (double& frequency : frequencies) {
    const double wavelength = 2.0 * std::numbers::pi / frequency;
    if (wavelength > original / low) {
      frequency /= factor;
    } else if (wavelength >= original / high) {
      const double smooth = (original / wavelength - low) / (high - low);
      frequency = (1.0 - smooth) * frequency / factor + smooth * frequency;
    }
  }
}

double yarn_magnitude(double factor, double scale) { return factor <= 1.0 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0; }

// Interpolates the components that turn few times over the original context, keeps those that turn often, with a ramp between.
double apply_yarn(Fields& fields, double theta, int32_t rotary_dim, int32_t max_position_embeddings,
                  std::vector<double>& frequencies) {
  const double factor = fields.number("factor", 1.0, 1.0, kMaxFactor);
  const double beta_fast = fields.number("beta_fast", 32.0, 1e-6, kMaxFactor);
  const double beta_slow = fields.number("beta_slow", 1.0, 1e-6, kMaxFactor);
  const double original = fields.integer("original_max_position_embeddings", max_position_embeddings, 1, kMaxPosition);
  const double scale = fields.number("mscale", 0.0, 0.0, kMaxFactor);
  const double scale_all = fields.number("mscale_all_dim", 0.0, 0.0, kMaxFactor);
  const bool truncate = fields.boolean("truncate", true);
  if (theta <= 1.0) fields.fail("expected rope_theta above 1 with yarn rope settings");
  if (beta_fast < beta_slow) fields.fail("expected beta_fast of at least beta_slow in the yarn rope settings");
  double attention_factor = yarn_magnitude(factor, 1.0);
  if (scale != 0.0 && scale_all != 0.0)
    attention_factor = yarn_magnitude(factor, scale) / yarn_magnitude(factor, scale_all);
  attention_factor = fields.number("attention_factor", attention_factor, 1e-6, kMaxFactor);
  if (!fields.status().ok()) return 1.0;

  // The component that turns `beta` times over the original context.
  const auto component = [&](double beta) {
    return rotary_dim * std::log(original / (2.0 * std::numbers::pi * beta)) / (2.0 * std::log(theta));
  };
  double low = component(beta_fast), high = component(beta_slow);
  if (truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, rotary_dim - 1.0);
  if (low == high) high += 0.001;
  for (std::size_t j = 0; j < frequencies.size(); ++j) {
    const double ramp = std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
    frequencies[j] = ramp * frequencies[j] / factor + (1.0 - ramp) * frequencies[j];
  }
  return attention_factor;
}

}  // namespace

Expected<RopeConfig> read_rope_config(const Json& config, int32_t head_dim, int32_t max_position_embeddings) {
  Fields top(config);
  const Json* settings = top.find("rope_scaling");
  if (settings == nullptr) settings = top.find("rope_parameters");
  const Json none = Json::object();
  if (settings == nullptr) settings = &none;
  if (!settings->is_object()) {
    return Status::invalid_argument("expected the rope settings to be an object, got " + brief_value(*settings));
  }
  for (const auto& [key, value] : settings->items()) {
    if (value.is_object()) {
      return Status::unsupported("expected one set of rope settings for all layers, got separate ones for '" + brief(key) +
                                 "'");
    }
  }

  Fields fields(*settings);
  RopeConfig rope;
  rope.type = fields.text("rope_type", fields.text("type", "default"));
  rope.theta = fields.number("rope_theta", top.number("rope_theta", kDefaultTheta, 1e-3, kMaxTheta), 1e-3, kMaxTheta);
  const double partial =
      fields.number("partial_rotary_factor", top.number("partial_rotary_factor", 1.0, 0.0, 1.0), 0.0, 1.0);
  RAREFY_RETURN_IF_ERROR(top.status());
  RAREFY_RETURN_IF_ERROR(fields.status());
  if (partial != 1.0) {
    return Status::unsupported("expected partial_rotary_factor 1 in this family, got " + std::to_string(partial));
  }
  rope.rotary_dim = head_dim;

  std::vector<double> frequencies = base_frequencies(rope.theta, rope.rotary_dim);
  double attention_factor = 1.0;
  if (rope.type == "linear") {
    apply_linear(fields, frequencies);
  } else if (rope.type == "llama3") {
    apply_llama3(fields, max_position_embeddings, frequencies);
  } else if (rope.type == "yarn") {
    attention_factor = apply_yarn(fields, rope.theta, rope.rotary_dim, max_position_embeddings, frequencies);
  } else if (rope.type != "default") {
    return Status::unsupported("expected the rope type to be default, linear, llama3 or yarn, got '" + brief(rope.type) +
                               "'");
  }
  RAREFY_RETURN_IF_ERROR(fields.status());

  rope.attention_factor = static_cast<float>(attention_factor);
  bool finite = std::isfinite(rope.attention_factor);
  for (const double frequency : frequencies) {
    rope.inverse_frequency.push_back(static_cast<float>(frequency));
    finite = finite && std::isfinite(rope.inverse_frequency.back()) && frequency >= 0.0;
  }
  if (!finite)
    return Status::invalid_argument("expected rope settings with finite frequencies, got theta " +
                                    std::to_string(rope.theta));
  return rope;
}

}  // namespace rarefy::model
