#include "model/weights.h"

#include <array>
#include <charconv>
#include <cmath>
#include <future>
#include <string>

#include "model/json_file.h"
#include "model/tensor_reader.h"
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

std::vector<float> plus_one(std::vector<float> values) {
  for (float& value : values) value += 1.0f;
  return values;
}

// Reads the layers of a decoder into their blocks.
class LayerLoader {
 public:
  LayerLoader(TensorReader& reader, const ModelConfig& config) : reader_(reader), config_(config) {}

  Status norm(const std::string& name, int64_t dim, std::vector<float>& out) {
    RAREFY_RETURN_IF_ERROR(reader_.append(name, {dim}, out));
    if (config_.blocks.norm_adds_one) out = plus_one(std::move(out));
    return {};
  }

  Status table(const std::string& name, cpu::Matmul& out) {
    const std::string stem = name.substr(0, name.size() - std::string_view(".weight").size());
    return reader_.matmul({{stem, config_.vocab_size}}, config_.hidden_size, false, out);
  }

  Status layer(const std::string& name, LayerKind kind, LayerWeights& out) {
    const int64_t hidden = config_.hidden_size, intermediate = config_.intermediate_size;
    const std::string mlp = name + "mlp.";
    RAREFY_RETURN_IF_ERROR(norm(name + "input_layernorm.weight", hidden, out.mixer_norm));
    if (kind == LayerKind::linear_attention) {
      RAREFY_RETURN_IF_ERROR(delta_net(name + "linear_attn.", out.mixer.emplace<DeltaNetWeights>()));
    } else {
      RAREFY_RETURN_IF_ERROR(attention(name + "self_attn.", out.mixer.emplace<AttentionWeights>()));
    }
    // With sandwich norms the name of the norm before the MLP is that of the one after attention.
    const bool sandwich = config_.blocks.sandwich_norms;
    RAREFY_RETURN_IF_ERROR(
        norm(name + "post_attention_layernorm.weight", hidden, sandwich ? out.post_mixer_norm : out.mlp_norm));
    if (sandwich) {
      RAREFY_RETURN_IF_ERROR(norm(name + "pre_feedforward_layernorm.weight", hidden, out.mlp_norm));
      RAREFY_RETURN_IF_ERROR(norm(name + "post_feedforward_layernorm.weight", hidden, out.post_mlp_norm));
    }
    RAREFY_RETURN_IF_ERROR(reader_.matmul({{mlp + "gate_proj", intermediate}, {mlp + "up_proj", intermediate}}, hidden,
                                          config_.mlp_bias, out.gate_up));
    return reader_.matmul({{mlp + "down_proj", hidden}}, intermediate, config_.mlp_bias, out.down);
  }

 private:
  Status attention(const std::string& name, AttentionWeights& out) {
    const int64_t hidden = config_.hidden_size;
    const int64_t width = int64_t{config_.num_q_heads} * config_.head_dim;
    const int64_t q_rows = config_.blocks.output_gate ? 2 * width : width;
    const int64_t kv_rows = int64_t{config_.num_kv_heads} * config_.head_dim;
    RAREFY_RETURN_IF_ERROR(
        reader_.matmul({{name + "q_proj", q_rows}, {name + "k_proj", kv_rows}, {name + "v_proj", kv_rows}}, hidden,
                       config_.attention_bias, out.qkv));
    if (config_.blocks.query_key_norm) {
      RAREFY_RETURN_IF_ERROR(norm(name + "q_norm.weight", config_.head_dim, out.q_norm));
      RAREFY_RETURN_IF_ERROR(norm(name + "k_norm.weight", config_.head_dim, out.k_norm));
    }
    return reader_.matmul({{name + "o_proj", hidden}}, width, config_.output_bias, out.output);
  }

  Status delta_net(const std::string& name, DeltaNetWeights& out) {
    const LinearAttentionConfig& linear = config_.linear;
    const int64_t hidden = config_.hidden_size, heads = linear.num_value_heads, channels = linear.conv_width();
    RAREFY_RETURN_IF_ERROR(reader_.matmul({{name + "in_proj_qkv", channels},
                                           {name + "in_proj_z", linear.value_width()},
                                           {name + "in_proj_b", heads},
                                           {name + "in_proj_a", heads}},
                                          hidden, false, out.in));
    std::vector<float> conv;  // [conv_width, conv_kernel] f32
    RAREFY_RETURN_IF_ERROR(reader_.append(name + "conv1d.weight", {channels, 1, linear.conv_kernel}, conv));
    out.conv.resize(conv.size());
    for (int64_t channel = 0; channel < channels; ++channel) {
      for (int64_t tap = 0; tap < linear.conv_kernel; ++tap) {
        out.conv[static_cast<std::size_t>(tap * channels + channel)] =
            conv[static_cast<std::size_t>(channel * linear.conv_kernel + tap)];
      }
    }
    RAREFY_RETURN_IF_ERROR(reader_.append(name + "A_log", {heads}, out.decay));
    for (float& value : out.decay) value = -std::exp(value);
    RAREFY_RETURN_IF_ERROR(reader_.append(name + "dt_bias", {heads}, out.dt_bias));
    RAREFY_RETURN_IF_ERROR(reader_.append(name + "norm.weight", {linear.value_head_dim}, out.norm));  // plain, not 1 + w
    return reader_.matmul({{name + "out_proj", hidden}}, linear.value_width(), false, out.output);
  }

  TensorReader& reader_;
  const ModelConfig& config_;
};

// Calls body(name, rest of the name after "layers.") for every tensor of the decoder's layers.
template <typename Body>
Status for_layer_tensors(const Checkpoint& checkpoint, const Names& names, const Body& body) {
  const std::string layers = names.prefix + "layers.";
  for (auto it = checkpoint.tensors().lower_bound(layers);
       it != checkpoint.tensors().end() && it->first.starts_with(layers); ++it) {
    RAREFY_RETURN_IF_ERROR(body(it->first, std::string_view(it->first).substr(layers.size())));
  }
  return {};
}

// More layers than configured are those of another model.
Status check_layer_count(const Checkpoint& checkpoint, const Names& names, const ModelConfig& config) {
  return for_layer_tensors(checkpoint, names, [&](const std::string& name, std::string_view rest) -> Status {
    int32_t layer = -1;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
    if (error != std::errc() || layer < config.num_layers) return {};
    return Status::data_loss("expected " + std::to_string(config.num_layers) + " layers as config.json says, got tensor '" +
                             brief(name) + "'; does config.json belong to these weights?");
  });
}

// Tensors of the decoder that were left unread point to another architecture or a config.json of another model.
void warn_of_unread(const Checkpoint& checkpoint, const Names& names, const ModelConfig& config,
                    const TensorReader& reader) {
  static_cast<void>(for_layer_tensors(checkpoint, names, [&](const std::string& name, std::string_view rest) -> Status {
    if (!reader.was_read(name) && !rest.ends_with("rotary_emb.inv_freq")) {
      log_message(LogLevel::warning, "tensor '" + brief(name) + "' is not part of a " + config.architecture +
                                         " model with this config.json and is ignored");
    }
    return {};
  }));
}

// Reads the file ahead on a thread of its own while what came before is converted: asking for pages blocks until the disk has
// taken the request, so one thread in turns reaches only half of the disk's rate.
class ReadAhead {
 public:
  explicit ReadAhead(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  // Waits for the tensors asked for before, then asks for those whose names begin with `prefix`.
  void start(const std::string& prefix) {
    if (pending_.valid()) pending_.wait();
    pending_ = std::async(std::launch::async, [this, prefix] {
      for (auto it = checkpoint_.tensors().lower_bound(prefix);
           it != checkpoint_.tensors().end() && it->first.starts_with(prefix); ++it) {
        MappedFile::prefetch({it->second.data, it->second.size_bytes});
      }
    });
  }

 private:
  const Checkpoint& checkpoint_;
  std::future<void> pending_;  // its destructor waits
};

int64_t float_bytes(std::initializer_list<const std::vector<float>*> vectors) {
  std::size_t count = 0;
  for (const std::vector<float>* values : vectors) count += values->size();
  return static_cast<int64_t>(count * sizeof(float));
}

int64_t mixer_bytes(const AttentionWeights& mixer) {
  return mixer.qkv.weight_bytes() + mixer.output.weight_bytes() + float_bytes({&mixer.q_norm, &mixer.k_norm});
}

int64_t mixer_bytes(const DeltaNetWeights& mixer) {
  return mixer.in.weight_bytes() + mixer.output.weight_bytes() +
         float_bytes({&mixer.conv, &mixer.decay, &mixer.dt_bias, &mixer.norm});
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
  int64_t bytes = head.weight_bytes() + float_bytes({&final_norm});
  for (const LayerWeights& layer : layers) {
    bytes += std::visit([](const auto& mixer) { return mixer_bytes(mixer); }, layer.mixer);
    bytes += layer.gate_up.weight_bytes() + layer.down.weight_bytes();
    bytes += float_bytes({&layer.mixer_norm, &layer.post_mixer_norm, &layer.mlp_norm, &layer.post_mlp_norm});
  }
  return bytes;
}

Expected<Weights> Weights::load(const Checkpoint& checkpoint, const ModelConfig& config, DType weight_dtype) {
  RAREFY_ASSIGN_OR_RETURN(const Names names, find_names(checkpoint));
  RAREFY_RETURN_IF_ERROR(check_layer_count(checkpoint, names, config));
  TensorReader reader(checkpoint, weight_dtype);
  LayerLoader loader(reader, config);
  Weights weights;
  const auto layer_prefix = [&](int32_t i) { return names.prefix + "layers." + std::to_string(i) + "."; };
  weights.layers.reserve(static_cast<std::size_t>(config.num_layers));
  ReadAhead read_ahead(checkpoint);
  read_ahead.start(layer_prefix(0));
  for (int32_t i = 0; i < config.num_layers; ++i) {
    read_ahead.start(i + 1 < config.num_layers ? layer_prefix(i + 1) : names.prefix + "embed_tokens.");
    const LayerKind kind = config.layers[static_cast<std::size_t>(i)];
    RAREFY_RETURN_IF_ERROR(loader.layer(layer_prefix(i), kind, weights.layers.emplace_back()));
  }
  RAREFY_RETURN_IF_ERROR(loader.norm(names.prefix + "norm.weight", config.hidden_size, weights.final_norm));
  const bool untied = !names.head.empty();
  RAREFY_RETURN_IF_ERROR(loader.table(untied ? names.head : names.embedding, weights.head));
  if (untied) RAREFY_RETURN_IF_ERROR(loader.table(names.embedding, weights.embedding));
  if (config.blocks.scaled_embedding) {
    // The models were trained with the factor in the type of their weights.
    const auto exact = static_cast<float>(std::sqrt(static_cast<double>(config.hidden_size)));
    weights.embedding_scale = weight_dtype == DType::bf16 ? to_float(to_bfloat16(exact)) : exact;
  }
  warn_of_unread(checkpoint, names, config, reader);
  return weights;
}

}  // namespace rarefy::model
