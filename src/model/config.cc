#include "rarefy/model/config.h"

#include <algorithm>
#include <cmath>

#include "model/config_fields.h"
#include "model/config_reader.h"
#include "model/families/family.h"

namespace rarefy {
namespace model {
namespace {

// Beyond every published model, far below what would overflow an offset.
constexpr int32_t kMaxVocab = 1 << 24;
constexpr int32_t kMaxHidden = 1 << 17;
constexpr int32_t kMaxIntermediate = 1 << 20;
constexpr int32_t kMaxLayers = 1024;
constexpr int32_t kMaxHeads = 1024;
constexpr int32_t kMaxHeadDim = 1024;
constexpr int32_t kMaxPositions = 1 << 30;

void add_stop_ids(const std::vector<int32_t>& ids, ModelConfig& config) {
  for (const int32_t id : ids) {
    auto& known = config.stop_token_ids;
    if (std::find(known.begin(), known.end(), id) == known.end()) known.push_back(id);
  }
}

Status check_ids(const std::vector<int32_t>& ids, std::string_view key, const ModelConfig& config) {
  for (const int32_t id : ids) {
    if (id >= config.vocab_size) {
      return Status::invalid_argument("expected " + std::string(key) + " below vocab_size " +
                                      std::to_string(config.vocab_size) + ", got " + std::to_string(id));
    }
  }
  return {};
}

// What a model with routed experts would need and does not find here.
Status check_experts(const Json& decoder, const std::string& model_type) {
  const Fields fields(decoder);
  bool experts = model_type.find("moe") != std::string::npos;
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"}) {
    const Json* value = fields.find(key);
    experts = experts || (value != nullptr && value->is_number() && value->get<double>() > 1.0);
  }
  if (!experts) return {};
  return Status::unsupported(
      "expected a dense model, got a mixture of experts" +
      (model_type.empty() ? std::string() : " (model_type '" + brief(model_type) + "')") +
      "; the router and the experts of its MLP layers are missing here; supported: " + supported_model_types());
}

Expected<const Family*> choose_family(const Json& top, const Json& decoder) {
  Fields fields(decoder), top_fields(top);
  const bool wrapped = &top != &decoder;
  const std::string model_type = fields.text("model_type", "");
  const std::string wrapper_type = wrapped ? top_fields.text("model_type", "") : "";
  RAREFY_RETURN_IF_ERROR(fields.status());
  RAREFY_RETURN_IF_ERROR(top_fields.status());
  RAREFY_RETURN_IF_ERROR(check_experts(decoder, model_type.empty() ? wrapper_type : model_type));
  if (wrapped && model_type.empty()) {
    if (const Family* family = find_wrapped_family(wrapper_type)) return family;
  }
  std::string architecture;
  if (const auto list = top.find("architectures");
      list != top.end() && list->is_array() && !list->empty() && (*list)[0].is_string()) {
    architecture = (*list)[0].get<std::string>();
  }
  if (const Family* family = find_family(model_type, architecture)) return family;
  if (!wrapped && find_wrapped_family(model_type) != nullptr) {
    return Status::unsupported("expected text_config, the decoder's part, beside model_type '" + model_type +
                               "', got a config.json without it");
  }
  const std::string got = !model_type.empty()     ? "model_type '" + brief(model_type) + "'"
                          : !wrapper_type.empty() ? "a text_config without model_type in a '" + brief(wrapper_type) + "'"
                          : !architecture.empty() ? "architecture '" + brief(architecture) + "'"
                                                  : std::string("neither model_type nor architectures");
  return Status::unsupported("expected model_type to be one of " + supported_model_types() + ", got " + got);
}

// Block-quantised and otherwise compressed weights are refused but for fp8, whose tensors carry their scales.
Status check_quantization(const Json& object) {
  const Json* quantization = Fields(object).find("quantization_config");
  if (quantization == nullptr) return {};
  if (!quantization->is_object()) {
    return Status::invalid_argument("expected quantization_config to be an object, got " + brief_value(*quantization));
  }
  Fields fields(*quantization);
  const std::string method = fields.text("quant_method", "");
  RAREFY_RETURN_IF_ERROR(fields.status());
  if (method == "fp8") return {};
  return Status::unsupported(
      "expected weights in f32, f16, bf16 or fp8 (quant_method 'fp8'), got a quantised checkpoint of " +
      (method.empty() ? std::string("an unnamed method") : "quant_method '" + brief(method) + "'") +
      "; fetch the unquantised one");
}

Expected<Activation> read_activation(Fields& fields, const Family& family) {
  const std::string key(family.activation_key);
  // Files that name their GELU by the older key mean the tanh form all the same.
  const std::string name = fields.text(key, "");
  RAREFY_RETURN_IF_ERROR(fields.status());
  if (name.empty()) return family.blocks.activation;
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu_pytorch_tanh") return Activation::gelu_tanh;
  return Status::unsupported("expected " + key + " to be 'silu' or 'gelu_pytorch_tanh', got '" + brief(name) + "'");
}

// Kinds of layers whose sizes are missing.
Status check_layers(const ModelConfig& config, const Family& family) {
  if (!config.layers_of(LayerKind::sliding_attention).empty() && config.sliding_window == 0) {
    return Status::invalid_argument(
        "expected a sliding_window (and, for qwen2, use_sliding_window) with sliding_attention layers, got none");
  }
  if (!config.layers_of(LayerKind::linear_attention).empty() && config.linear.conv_kernel == 0) {
    return Status::unsupported("expected attention in every layer of a " + std::string(family.name) +
                               " model, got linear_attention in layer_types");
  }
  return {};
}

void read_media_ids(const Json& top, ModelConfig& config) {
  for (const char* key : {"image_token_id", "image_token_index", "video_token_id", "audio_token_id"}) {
    const auto id = top.find(key);
    if (id == top.end() || !id->is_number_integer()) continue;
    const auto number = id->get<int64_t>();
    if (number >= 0 && number < config.vocab_size) config.media_token_ids.push_back(static_cast<int32_t>(number));
  }
}

bool resolve(BiasRule rule, bool from_config) {
  return rule == BiasRule::always || (rule == BiasRule::from_config && from_config);
}

Status read_sizes(Fields& fields, const Family& family, ModelConfig& config) {
  config.vocab_size = fields.integer("vocab_size", family.vocab_size, 1, kMaxVocab);
  config.hidden_size = fields.integer("hidden_size", family.hidden_size, 1, kMaxHidden);
  config.intermediate_size = fields.integer("intermediate_size", family.intermediate_size, 1, kMaxIntermediate);
  config.num_layers = fields.integer("num_hidden_layers", family.num_hidden_layers, 1, kMaxLayers);
  config.num_q_heads = fields.integer("num_attention_heads", family.num_attention_heads, 1, kMaxHeads);
  const int32_t default_kv_heads = family.num_key_value_heads > 0 ? family.num_key_value_heads : config.num_q_heads;
  config.num_kv_heads = fields.integer("num_key_value_heads", default_kv_heads, 1, kMaxHeads);
  config.max_position_embeddings =
      fields.integer("max_position_embeddings", family.max_position_embeddings, 1, kMaxPositions);
  config.rms_norm_eps = static_cast<float>(fields.number("rms_norm_eps", family.rms_norm_eps, 0.0, 1.0));
  RAREFY_RETURN_IF_ERROR(fields.status());

  if (config.num_q_heads % config.num_kv_heads != 0) {
    return Status::invalid_argument("expected num_attention_heads to be a multiple of num_key_value_heads, got " +
                                    std::to_string(config.num_q_heads) + " and " + std::to_string(config.num_kv_heads));
  }
  config.head_dim = family.reads_head_dim ? fields.integer("head_dim", family.head_dim, 1, kMaxHeadDim) : family.head_dim;
  RAREFY_RETURN_IF_ERROR(fields.status());
  if (config.head_dim == 0) {
    if (config.hidden_size % config.num_q_heads != 0) {
      return Status::invalid_argument("expected hidden_size to be a multiple of num_attention_heads, got " +
                                      std::to_string(config.hidden_size) + " and " + std::to_string(config.num_q_heads));
    }
    config.head_dim = config.hidden_size / config.num_q_heads;
  }
  if (config.head_dim % 2 != 0 || config.head_dim > kMaxHeadDim) {
    return Status::invalid_argument("expected an even head_dim of at most " + std::to_string(kMaxHeadDim) + ", got " +
                                    std::to_string(config.head_dim));
  }
  return {};
}

}  // namespace

Status apply_generation_config(std::string_view generation_config_json, ModelConfig& config) {
  RAREFY_ASSIGN_OR_RETURN(const Json json, parse_json(generation_config_json));
  if (!json.is_object()) return Status::data_loss("expected an object, got " + brief_value(json));
  Fields fields(json);
  const std::vector<int32_t> stop_ids = fields.ids("eos_token_id");
  const std::vector<int32_t> bos_ids = fields.ids("bos_token_id");
  RAREFY_RETURN_IF_ERROR(fields.status());
  RAREFY_RETURN_IF_ERROR(check_ids(stop_ids, "eos_token_id", config));
  RAREFY_RETURN_IF_ERROR(check_ids(bos_ids, "bos_token_id", config));
  add_stop_ids(stop_ids, config);
  if (config.bos_token_id < 0 && !bos_ids.empty()) config.bos_token_id = bos_ids.front();
  return {};
}

Expected<SpecialTokens> read_special_tokens(const std::filesystem::path& folder) {
  SpecialTokens tokens;
  const auto path = folder / "tokenizer_config.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return tokens;
  RAREFY_ASSIGN_OR_RETURN(const Json json, read_json_file(path));
  if (!json.is_object()) return Status::data_loss(path.string() + ": expected an object, got " + brief_value(json));
  // Either the string itself or an object that describes an added token.
  const auto read = [&](const char* key) -> std::string {
    const auto found = json.find(key);
    if (found == json.end()) return {};
    if (found->is_string()) return found->get<std::string>();
    if (!found->is_object()) return {};
    const auto content = found->find("content");
    return content != found->end() && content->is_string() ? content->get<std::string>() : std::string();
  };
  tokens.bos = read("bos_token");
  tokens.eos = read("eos_token");
  return tokens;
}

}  // namespace model

std::string_view to_string(LayerKind kind) {
  switch (kind) {
    case LayerKind::full_attention: return "full_attention";
    case LayerKind::sliding_attention: return "sliding_attention";
    case LayerKind::linear_attention: return "linear_attention";
  }
  return "unknown";
}

std::vector<int32_t> ModelConfig::layers_of(LayerKind kind) const {
  std::vector<int32_t> found;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    if (layers[layer] == kind) found.push_back(static_cast<int32_t>(layer));
  }
  return found;
}

int64_t ModelConfig::kv_bytes_per_token(DType kv_dtype) const {
  const auto full = static_cast<int64_t>(layers_of(LayerKind::full_attention).size());
  return 2 * full * num_kv_heads * head_dim * static_cast<int64_t>(size_of(kv_dtype));
}

int64_t ModelConfig::window_bytes(DType kv_dtype) const {
  const auto sliding = static_cast<int64_t>(layers_of(LayerKind::sliding_attention).size());
  return 2 * sliding * sliding_window * num_kv_heads * head_dim * static_cast<int64_t>(size_of(kv_dtype));
}

int64_t ModelConfig::state_bytes() const {
  const auto recurrent = static_cast<int64_t>(layers_of(LayerKind::linear_attention).size());
  return recurrent * linear.state_floats() * static_cast<int64_t>(sizeof(float));
}

Expected<ModelConfig> ModelConfig::parse(std::string_view config_json) {
  using namespace model;
  RAREFY_ASSIGN_OR_RETURN(const Json top, parse_json(config_json));
  if (!top.is_object()) return Status::data_loss("expected an object, got " + brief_value(top));
  const auto text_config = top.find("text_config");
  const bool wrapped = text_config != top.end() && text_config->is_object();
  const Json& decoder = wrapped ? *text_config : top;
  RAREFY_ASSIGN_OR_RETURN(const Family* family, choose_family(top, decoder));

  ModelConfig config;
  config.architecture = std::string(family->name);
  Fields fields(decoder);
  RAREFY_RETURN_IF_ERROR(read_sizes(fields, *family, config));
  for (const Json* object : {&top, &decoder}) RAREFY_RETURN_IF_ERROR(check_quantization(*object));
  config.blocks = family->blocks;
  RAREFY_ASSIGN_OR_RETURN(config.blocks.activation, read_activation(fields, *family));
  config.layers.assign(static_cast<std::size_t>(config.num_layers), LayerKind::full_attention);
  config.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim)));

  const bool attention_bias = fields.boolean("attention_bias", false);
  config.attention_bias = resolve(family->qkv_bias, attention_bias);
  config.output_bias = resolve(family->output_bias, attention_bias);
  config.mlp_bias = resolve(family->mlp_bias, fields.boolean("mlp_bias", false));

  // dtype describes the file as a whole; the tensors' own types decide.
  const std::string dtype = fields.text("dtype", fields.text("torch_dtype", "bfloat16"));
  config.checkpoint_dtype = dtype == "float32" ? DType::f32 : dtype == "float16" ? DType::f16 : DType::bf16;

  Fields top_fields(top);
  for (Fields* level : {&fields, &top_fields}) {
    const auto stop_ids = level->ids("eos_token_id");
    const auto bos_ids = level->ids("bos_token_id");
    RAREFY_RETURN_IF_ERROR(level->status());
    RAREFY_RETURN_IF_ERROR(check_ids(stop_ids, "eos_token_id", config));
    RAREFY_RETURN_IF_ERROR(check_ids(bos_ids, "bos_token_id", config));
    add_stop_ids(stop_ids, config);
    if (config.bos_token_id < 0 && !bos_ids.empty()) config.bos_token_id = bos_ids.front();
  }
  // A key that is there but null means none; only a missing key takes the family's default.
  if (!decoder.contains("eos_token_id") && config.stop_token_ids.empty() && family->eos_token_id >= 0 &&
      family->eos_token_id < config.vocab_size) {
    config.stop_token_ids.push_back(family->eos_token_id);
  }
  if (!decoder.contains("bos_token_id") && config.bos_token_id < 0 && family->bos_token_id < config.vocab_size) {
    config.bos_token_id = family->bos_token_id;
  }

  RAREFY_RETURN_IF_ERROR(family->read_special(decoder, config));
  RAREFY_RETURN_IF_ERROR(check_layers(config, *family));
  if (wrapped) read_media_ids(top, config);
  return config;
}

Expected<ModelConfig> ModelConfig::load(const std::filesystem::path& folder) {
  using namespace model;
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    return Status::not_found(folder.string() + ": expected a model folder with config.json, " +
                             (std::filesystem::exists(folder, error) ? "found something else" : "found nothing"));
  }
  constexpr std::size_t kMaxBytes = std::size_t{16} << 20;
  RAREFY_ASSIGN_OR_RETURN(const std::string text, read_text_file(folder / "config.json", kMaxBytes));
  auto config = parse(text);
  if (!config) return config.status().with_context((folder / "config.json").string());

  const auto generation_path = folder / "generation_config.json";
  if (std::filesystem::exists(generation_path, error)) {
    RAREFY_ASSIGN_OR_RETURN(const std::string generation, read_text_file(generation_path, kMaxBytes));
    const Status status = apply_generation_config(generation, *config);
    if (!status.ok()) return status.with_context(generation_path.string());
  }
  return config;
}

}  // namespace rarefy
