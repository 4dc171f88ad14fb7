#include "rarefy/model/config.h"

#include <algorithm>
#include <cmath>

#include "model/config_fields.h"
#include "model/config_reader.h"
#include "model/family.h"
#include "model/rope_config.h"

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

Expected<const Family*> choose_family(const Json& top, const Json& decoder) {
  Fields fields(decoder);
  const std::string model_type = fields.text("model_type", "");
  std::string architecture;
  if (const auto list = top.find("architectures");
      list != top.end() && list->is_array() && !list->empty() && (*list)[0].is_string()) {
    architecture = (*list)[0].get<std::string>();
  }
  RAREFY_RETURN_IF_ERROR(fields.status());
  const Family* family = find_family(model_type, architecture);
  if (family != nullptr) return family;
  const std::string got = !model_type.empty()     ? "model_type '" + brief(model_type) + "'"
                          : !architecture.empty() ? "architecture '" + brief(architecture) + "'"
                                                  : std::string("neither model_type nor architectures");
  return Status::unsupported("expected model_type to be one of " + supported_model_types() + ", got " + got);
}

// Refuses what would change the computation and is not offered.
Status check_supported(const Json& top, const Json& decoder, int32_t num_layers) {
  Fields fields(decoder);
  const std::string activation = fields.text("hidden_act", "silu");
  const bool windows = fields.boolean("use_sliding_window", false);
  const int32_t first_windowed = fields.integer("max_window_layers", num_layers, 0, kMaxPositions);
  RAREFY_RETURN_IF_ERROR(fields.status());
  if (activation != "silu" && activation != "swish") {
    return Status::unsupported("expected hidden_act 'silu', got '" + brief(activation) + "'");
  }
  for (const Json* object : {&top, &decoder}) {
    if (Fields(*object).has("quantization_config")) {
      return Status::unsupported(
          "expected weights in f32, f16 or bf16, got a quantised checkpoint (quantization_config); fetch the unquantised "
          "one");
    }
  }
  if (const Json* types = fields.find("layer_types")) {
    if (!types->is_array())
      return Status::invalid_argument("expected layer_types to be a list, got " + brief_value(*types));
    for (const Json& type : *types) {
      if (type != "full_attention") {
        return Status::unsupported("expected full_attention in every layer, got " + brief_value(type) + " in layer_types");
      }
    }
    if (types->size() != static_cast<std::size_t>(num_layers)) {
      return Status::invalid_argument("expected layer_types to have num_hidden_layers = " + std::to_string(num_layers) +
                                      " entries, got " + std::to_string(types->size()));
    }
  } else if (windows && fields.has("sliding_window") && first_windowed < num_layers) {
    return Status::unsupported("expected full attention in every layer, got use_sliding_window with max_window_layers " +
                               std::to_string(first_windowed) + " of " + std::to_string(num_layers) + " layers");
  }
  return {};
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
  if (family.reads_head_dim && fields.has("head_dim")) {
    config.head_dim = fields.integer("head_dim", 0, 1, kMaxHeadDim);
    RAREFY_RETURN_IF_ERROR(fields.status());
  } else {
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

int64_t ModelConfig::kv_bytes_per_token(DType kv_dtype) const {
  return int64_t{2} * num_layers * num_kv_heads * head_dim * static_cast<int64_t>(size_of(kv_dtype));
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
  config.architecture = std::string(family->model_type);
  Fields fields(decoder);
  RAREFY_RETURN_IF_ERROR(read_sizes(fields, *family, config));
  RAREFY_RETURN_IF_ERROR(check_supported(top, decoder, config.num_layers));
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

  RAREFY_ASSIGN_OR_RETURN(config.rope, read_rope_config(decoder, config.head_dim, config.max_position_embeddings));
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
