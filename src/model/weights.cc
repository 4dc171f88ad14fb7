#include "model/weights.h"

#include <array>
#include <charconv>
#include <optional>
#include <string>

#include "model/json_file.h"
#include "rarefy/core/log.h"

namespace rarefy::model {
namespace {

// Where the decoder's tensors may lie; wrappers of several inputs put it one level down. The first that matches is used.
constexpr std::array<std::string_view, 3> kPrefixes = {"model.language_model.", "language_model.model.", "model."};
constexpr std::array<std::string_view, 2> kHeadNames = {"lm_head.weight", "language_model.lm_head.weight"};
constexpr std::string_view kEmbedding = "embed_tokens.weight";

struct Names {
  std::string prefix;
  std::string embedding;
  std::string head;  // empty: the embedding is the head
};

Expected<Names> find_names(const Checkpoint& checkpoint) {
  Names names;
  std::string tried;
  for (const std::string_view prefix : kPrefixes) {
    names.embedding = std::string(prefix) + std::string(kEmbedding);
    if (checkpoint.find(names.embedding) != nullptr) {
      names.prefix = prefix;
      // Tied or not is told by the tensors, not by tie_word_embeddings, which wrappers get wrong.
      for (const std::string_view head : kHeadNames) {
        if (names.head.empty() && checkpoint.find(head) != nullptr) names.head = head;
      }
      return names;
    }
    tried += (tried.empty() ? "" : ", ") + names.embedding;
  }
  const std::string first = checkpoint.tensors().empty()
                                ? "no tensor at all"
                                : "tensors such as '" + brief(checkpoint.tensors().begin()->first) + "'";
  return Status::not_found("expected an embedding under one of the names " + tried + "; got " + first);
}

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const ModelConfig& config, DType weight_dtype)
      : checkpoint_(checkpoint), config_(config), weight_dtype_(weight_dtype) {}

  Expected<const StoredTensor*> tensor(const std::string& name, std::initializer_list<int64_t> shape) const {
    const StoredTensor* stored = checkpoint_.find(name);
    if (stored == nullptr) {
      return Status::not_found("expected tensor '" + name + "' of shape " + shape_text({shape.begin(), shape.size()}) +
                               ", found none; does config.json belong to these weights?");
    }
    if (!std::equal(shape.begin(), shape.end(), stored->shape.begin(), stored->shape.end())) {
      return Status::data_loss("expected tensor '" + name + "' of shape " + shape_text({shape.begin(), shape.size()}) +
                               ", got " + stored->to_string() + "; does config.json belong to these weights?");
    }
    if (!stored->dtype || (*stored->dtype != DType::f32 && *stored->dtype != DType::f16 && *stored->dtype != DType::bf16)) {
      return Status::unsupported("expected tensor '" + name + "' of type F32, F16 or BF16, got " + stored->dtype_name);
    }
    return stored;
  }

  Status append_vector(const std::string& name, int64_t count, std::vector<float>& values) const {
    RAREFY_ASSIGN_OR_RETURN(const StoredTensor* stored, tensor(name, {count}));
    const std::size_t before = values.size();
    values.resize(before + static_cast<std::size_t>(count));
    return cpu::convert_elements(stored->data, *stored->dtype, count, DType::f32, values.data() + before);
  }

  struct Part {
    std::string name;  // without ".weight" and ".bias"
    int64_t rows;
  };
  // Matrices with one input, one under the other, and their biases.
  Status matmul(std::initializer_list<Part> parts, int64_t in_dim, bool has_bias, cpu::Matmul& out) const {
    std::vector<cpu::WeightPart> weights;
    std::vector<float> bias;
    for (const Part& part : parts) {
      RAREFY_ASSIGN_OR_RETURN(const StoredTensor* stored, tensor(part.name + ".weight", {part.rows, in_dim}));
      weights.push_back({stored->data, *stored->dtype, part.rows});
      if (has_bias) RAREFY_RETURN_IF_ERROR(append_vector(part.name + ".bias", part.rows, bias));
    }
    return make(weights, in_dim, std::move(bias), out);
  }

  Status table(const std::string& name, cpu::Matmul& out) const {
    RAREFY_ASSIGN_OR_RETURN(const StoredTensor* stored, tensor(name, {config_.vocab_size, config_.hidden_size}));
    const cpu::WeightPart part{stored->data, *stored->dtype, config_.vocab_size};
    return make({&part, 1}, config_.hidden_size, {}, out);
  }

  Status layer(const std::string& name, LayerWeights& out) const {
    const int64_t hidden = config_.hidden_size, intermediate = config_.intermediate_size;
    const int64_t q_rows = int64_t{config_.num_q_heads} * config_.head_dim,
                  kv_rows = int64_t{config_.num_kv_heads} * config_.head_dim;
    const std::string attention = name + "self_attn.", mlp = name + "mlp.";
    RAREFY_RETURN_IF_ERROR(append_vector(name + "input_layernorm.weight", hidden, out.attention_norm));
    RAREFY_RETURN_IF_ERROR(
        matmul({{attention + "q_proj", q_rows}, {attention + "k_proj", kv_rows}, {attention + "v_proj", kv_rows}}, hidden,
               config_.attention_bias, out.qkv));
    RAREFY_RETURN_IF_ERROR(matmul({{attention + "o_proj", hidden}}, q_rows, config_.output_bias, out.output));
    RAREFY_RETURN_IF_ERROR(append_vector(name + "post_attention_layernorm.weight", hidden, out.mlp_norm));
    RAREFY_RETURN_IF_ERROR(matmul({{mlp + "gate_proj", intermediate}, {mlp + "up_proj", intermediate}}, hidden,
                                  config_.mlp_bias, out.gate_up));
    return matmul({{mlp + "down_proj", hidden}}, intermediate, config_.mlp_bias, out.down);
  }

 private:
  Status make(std::span<const cpu::WeightPart> parts, int64_t in_dim, std::vector<float> bias, cpu::Matmul& out) const {
    RAREFY_ASSIGN_OR_RETURN(out, cpu::Matmul::make(parts, in_dim, weight_dtype_, std::move(bias)));
    return {};
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  DType weight_dtype_;
};

// The suffixes of a layer that are read.
constexpr std::array<std::string_view, 16> kLayerTensors = {"input_layernorm.weight",  "post_attention_layernorm.weight",
                                                            "self_attn.q_proj.weight", "self_attn.k_proj.weight",
                                                            "self_attn.v_proj.weight", "self_attn.o_proj.weight",
                                                            "self_attn.q_proj.bias",   "self_attn.k_proj.bias",
                                                            "self_attn.v_proj.bias",   "self_attn.o_proj.bias",
                                                            "mlp.gate_proj.weight",    "mlp.up_proj.weight",
                                                            "mlp.down_proj.weight",    "mlp.gate_proj.bias",
                                                            "mlp.up_proj.bias",        "mlp.down_proj.bias"};

// Tensors of the decoder that would be left unread point to another architecture or a config.json of another model: more
// layers than configured are refused, biases that the configuration turns off and unknown names are warned of.
Status check_unread(const Checkpoint& checkpoint, const Names& names, const ModelConfig& config) {
  const std::string layers = names.prefix + "layers.";
  for (auto it = checkpoint.tensors().lower_bound(layers);
       it != checkpoint.tensors().end() && it->first.starts_with(layers); ++it) {
    const std::string_view rest = std::string_view(it->first).substr(layers.size());
    int32_t layer = -1;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
    const std::string_view suffix = rest.substr(std::min(rest.size(), static_cast<std::size_t>(end - rest.data()) + 1));
    if (error == std::errc() && layer >= config.num_layers) {
      return Status::data_loss("expected " + std::to_string(config.num_layers) +
                               " layers as config.json says, got tensor '" + brief(it->first) +
                               "'; does config.json belong to these weights?");
    }
    if (suffix.ends_with("rotary_emb.inv_freq")) continue;
    const bool known = std::find(kLayerTensors.begin(), kLayerTensors.end(), suffix) != kLayerTensors.end();
    const bool mlp = suffix.starts_with("mlp."), output = suffix.starts_with("self_attn.o_proj");
    const bool used_bias = mlp ? config.mlp_bias : output ? config.output_bias : config.attention_bias;
    if (!known || (suffix.ends_with(".bias") && !used_bias)) {
      log_message(LogLevel::warning, "tensor '" + brief(it->first) + "' is not part of a " + config.architecture +
                                         " model with this config.json and is ignored");
    }
  }
  return {};
}

}  // namespace

Expected<DType> checkpoint_dtype(const Checkpoint& checkpoint) {
  RAREFY_ASSIGN_OR_RETURN(const Names names, find_names(checkpoint));
  const StoredTensor* embedding = checkpoint.find(names.embedding);
  if (!embedding->dtype) {
    return Status::unsupported("expected tensor '" + names.embedding + "' of type F32, F16 or BF16, got " +
                               embedding->dtype_name);
  }
  return *embedding->dtype;
}

int64_t Weights::bytes_per_step() const {
  int64_t bytes = head.weight_bytes() + static_cast<int64_t>(final_norm.size() * sizeof(float));
  for (const LayerWeights& layer : layers) {
    bytes +=
        layer.qkv.weight_bytes() + layer.output.weight_bytes() + layer.gate_up.weight_bytes() + layer.down.weight_bytes();
    bytes += static_cast<int64_t>((layer.attention_norm.size() + layer.mlp_norm.size()) * sizeof(float));
  }
  return bytes;
}

Expected<Weights> Weights::load(const Checkpoint& checkpoint, const ModelConfig& config, DType weight_dtype) {
  RAREFY_ASSIGN_OR_RETURN(const Names names, find_names(checkpoint));
  RAREFY_RETURN_IF_ERROR(check_unread(checkpoint, names, config));
  const Loader loader(checkpoint, config, weight_dtype);
  Weights weights;
  for (int32_t i = 0; i < config.num_layers; ++i) {
    RAREFY_RETURN_IF_ERROR(loader.layer(names.prefix + "layers." + std::to_string(i) + ".", weights.layers.emplace_back()));
  }
  RAREFY_RETURN_IF_ERROR(loader.append_vector(names.prefix + "norm.weight", config.hidden_size, weights.final_norm));
  const bool untied = !names.head.empty();
  RAREFY_RETURN_IF_ERROR(loader.table(untied ? names.head : names.embedding, weights.head));
  if (untied) RAREFY_RETURN_IF_ERROR(loader.table(names.embedding, weights.embedding));
  return weights;
}

}  // namespace rarefy::model
