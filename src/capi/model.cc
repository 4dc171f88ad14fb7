// Models and their tokenizers.
#include <string>
#include <vector>

#include "capi/call.h"
#include "capi/handles.h"

using namespace rarefy;
using capi::call;
using capi::check_struct_size;
using capi::report;
using capi::require;

namespace {

Status check_flags(uint32_t flags, uint32_t known) {
  if ((flags & ~known) == 0) return {};
  return Status::invalid_argument("flags: expected a combination of the bits of " + std::to_string(known) + ", got " +
                                  std::to_string(flags));
}

Expected<std::vector<int32_t>> tokenize(const rarefy_model* model, const char* text, int64_t text_bytes, uint32_t flags) {
  RAREFY_RETURN_IF_ERROR(require(model, "a model"));
  RAREFY_RETURN_IF_ERROR(require(text, "a text"));
  RAREFY_RETURN_IF_ERROR(check_flags(flags, RAREFY_NO_SPECIAL_TOKENS | RAREFY_PLAIN_TEXT));
  if (text_bytes < -1) {
    return Status::invalid_argument("text_bytes: expected a length, or -1 for a NUL-terminated text, got " +
                                    std::to_string(text_bytes));
  }
  const std::string_view view =
      text_bytes < 0 ? std::string_view(text) : std::string_view(text, static_cast<size_t>(text_bytes));
  EncodeOptions options;
  options.add_special_tokens = (flags & RAREFY_NO_SPECIAL_TOKENS) == 0;
  options.parse_special = (flags & RAREFY_PLAIN_TEXT) == 0;
  return model->model->tokenizer().encode(view, options);
}

Expected<std::string> detokenize(const rarefy_model* model,
                                 const int32_t* tokens,  // [num_tokens] i32
                                 int64_t num_tokens, uint32_t flags) {
  RAREFY_RETURN_IF_ERROR(require(model, "a model"));
  RAREFY_RETURN_IF_ERROR(check_flags(flags, RAREFY_NO_SPECIAL_TOKENS));
  if (num_tokens < 0 || (tokens == nullptr && num_tokens != 0)) {
    return Status::invalid_argument("expected tokens and their number, got " + std::to_string(num_tokens) +
                                    (tokens == nullptr ? " and NULL" : ""));
  }
  const std::vector<int32_t> ids(tokens, tokens + num_tokens);  // [num_tokens] i32
  return model->model->tokenizer().decode(ids, (flags & RAREFY_NO_SPECIAL_TOKENS) != 0);
}

}  // namespace

rarefy_status rarefy_model_load(const char* folder, const rarefy_model_options* options, rarefy_model** model) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(folder, "a folder"));
    RAREFY_RETURN_IF_ERROR(require(model, "a place for the model"));
    ModelOptions resolved;
    if (options != nullptr) {
      RAREFY_RETURN_IF_ERROR(check_struct_size("rarefy_model_options", options->struct_size, sizeof(*options)));
      if (options->compute < RAREFY_COMPUTE_AUTOMATIC || options->compute > RAREFY_COMPUTE_BF16) {
        return Status::invalid_argument("compute: expected a rarefy_compute, got " + std::to_string(options->compute));
      }
      resolved.compute = static_cast<ComputeType>(options->compute);
    }
    RAREFY_ASSIGN_OR_RETURN(Model loaded, Model::load(folder, resolved));
    *model = new rarefy_model{std::make_shared<const Model>(std::move(loaded))};
    return {};
  });
}

void rarefy_model_free(rarefy_model* model) { delete model; }

rarefy_status rarefy_model_get_info(const rarefy_model* model, rarefy_model_info* info) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(model, "a model"));
    RAREFY_RETURN_IF_ERROR(require(info, "a place for the information"));
    RAREFY_RETURN_IF_ERROR(check_struct_size("rarefy_model_info", info->struct_size, sizeof(*info)));
    const ModelConfig& config = model->model->config();
    info->vocab_size = config.vocab_size;
    info->num_layers = config.num_layers;
    info->num_q_heads = config.num_q_heads;
    info->num_kv_heads = config.num_kv_heads;
    info->head_dim = config.head_dim;
    info->max_ctx_size = config.max_position_embeddings;
    info->bos_token_id = config.bos_token_id;
    info->weight_bytes = model->model->weight_bytes();
    return {};
  });
}

rarefy_status rarefy_model_stop_tokens(const rarefy_model* model, int32_t* tokens, int64_t capacity, int64_t* num_tokens) {
  return call([&]() -> rarefy_status {
    if (const Status status = require(model, "a model"); !status.ok()) return report(status);
    return capi::fill_tokens(model->model->config().stop_token_ids, tokens, capacity, num_tokens);
  });
}

rarefy_status rarefy_tokenize(const rarefy_model* model, const char* text, int64_t text_bytes, uint32_t flags,
                              int32_t* tokens, int64_t capacity, int64_t* num_tokens) {
  return call([&]() -> rarefy_status {
    const auto ids = tokenize(model, text, text_bytes, flags);
    return ids ? capi::fill_tokens(*ids, tokens, capacity, num_tokens) : report(ids.status());
  });
}

rarefy_status rarefy_detokenize(const rarefy_model* model, const int32_t* tokens, int64_t num_tokens, uint32_t flags,
                                char* text, int64_t capacity, int64_t* num_bytes) {
  return call([&]() -> rarefy_status {
    const auto result = detokenize(model, tokens, num_tokens, flags);
    return result ? capi::fill_text(*result, text, capacity, num_bytes) : report(result.status());
  });
}
