#include "model/rope_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/config_fields.h"

namespace rarefy::model {
namespace {

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

bool has_objects(const Json& settings) {
  return std::any_of(settings.begin(), settings.end(), [](const Json& value) { return value.is_object(); });
}

}  // namespace

const Json* find_rope_settings(const Json& decoder, const RopeSource& source) {
  static const Json kNone = Json::object();
  const Fields top(decoder);
  const Json* scaling = top.find("rope_scaling");
  if (scaling != nullptr && !source.ignores_rope_scaling) return scaling;
  const Json* parameters = top.find("rope_parameters");
  if (parameters == nullptr) return source.settings_if_missing != nullptr ? source.settings_if_missing : &kNone;
  if (source.layer_type.empty() || !parameters->is_object()) return parameters;
  const auto nested = parameters->find(source.layer_type);
  if (nested != parameters->end()) return nested->is_null() ? &kNone : &*nested;
  return source.ignores_rope_scaling || has_objects(*parameters) ? &kNone : parameters;
}

Status read_rope(const Json& decoder, const RopeSource& source, ModelConfig& config, RopeConfig& rope) {
  const Json* settings = find_rope_settings(decoder, source);
  if (!settings->is_object()) {
    return Status::invalid_argument("expected the rope settings to be an object, got " + brief_value(*settings));
  }
  if (has_objects(*settings)) {
    return Status::unsupported("expected one set of rope settings for all layers, got separate ones: " +
                               brief_value(*settings));
  }

  Fields top(decoder), fields(*settings);
  rope = {};
  rope.type = fields.text("rope_type", fields.text("type", "default"));
  rope.theta = fields.number("rope_theta", top.number(source.theta_key, source.theta, 1e-3, kMaxTheta), 1e-3, kMaxTheta);
  const double partial = fields.number(
      "partial_rotary_factor", top.number("partial_rotary_factor", source.partial_rotary_factor, 0.0, 1.0), 0.0, 1.0);
  RAREFY_RETURN_IF_ERROR(top.status());
  RAREFY_RETURN_IF_ERROR(fields.status());
  if (partial != 1.0 && !source.allows_partial) {
    return Status::unsupported("expected partial_rotary_factor 1 in this family, got " + std::to_string(partial));
  }
  rope.rotary_dim = static_cast<int32_t>(config.head_dim * partial);
  if (rope.rotary_dim < 2 || rope.rotary_dim % 2 != 0) {
    return Status::invalid_argument("expected partial_rotary_factor to rotate an even number of the " +
                                    std::to_string(config.head_dim) + " components of a head, got " +
                                    std::to_string(partial));
  }

  std::vector<double> frequencies = base_frequencies(rope.theta, rope.rotary_dim);
  double attention_factor = 1.0;
  if (rope.type == "linear") {
    apply_linear(fields, frequencies);
  } else if (rope.type == "llama3") {
    apply_llama3(fields, config.max_position_embeddings, frequencies);
  } else if (rope.type == "yarn") {
    attention_factor = apply_yarn(fields, rope.theta, rope.rotary_dim, config.max_position_embeddings, frequencies);
    const double extended =
        fields.number("factor", 1.0, 1.0, kMaxFactor) *
        fields.integer("original_max_position_embeddings", config.max_position_embeddings, 1, kMaxPosition);
    const auto longest = static_cast<int32_t>(std::min<double>(extended, kMaxPosition));
    if (fields.has("original_max_position_embeddings")) {
      config.max_position_embeddings = std::max(config.max_position_embeddings, longest);
    }
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
  return {};
}

}  // namespace rarefy::model
