#include "rarefy/engine/capture.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "model/json_file.h"
#include "model/mapped_file.h"
#include "model/safetensors.h"
#include "rarefy/model/safetensors_header.h"

namespace rarefy {
namespace {

constexpr const char* kFormat = "rarefy-capture-1";
constexpr int32_t kLargestCount = 1 << 20;  // of layers, heads, components

using Metadata = std::map<std::string, std::string, std::less<>>;

std::string text_of(float value) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;  // the shortest text that reads back the same
  return {buffer, end};
}

std::string layer_tensor(int32_t layer, const char* part) { return "layers." + std::to_string(layer) + "." + part; }

struct Shapes {
  std::vector<int64_t> tokens, positions, queries, rows;
};

Shapes shapes_of(const CaptureInfo& info) {
  return {{info.kv_len},
          {info.num_steps},
          {info.num_steps, info.num_q_heads, info.head_dim},
          {info.kv_len, info.num_kv_heads, info.head_dim}};
}

Expected<std::string> field(const Metadata& metadata, std::string_view name) {
  const auto found = metadata.find(name);
  if (found == metadata.end()) {
    return Status::data_loss("expected '" + std::string(name) +
                             "' in __metadata__, got nothing; is this a file of rarefy capture?");
  }
  return found->second;
}

template <typename T>
Expected<T> number(const Metadata& metadata, std::string_view name, T smallest, T largest) {
  RAREFY_ASSIGN_OR_RETURN(const std::string text, field(metadata, name));
  T value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc() || result.ptr != text.data() + text.size() || !(value >= smallest && value <= largest)) {
    return Status::data_loss("__metadata__ " + std::string(name) + ": expected a number from " + std::to_string(smallest) +
                             " to " + std::to_string(largest) + ", got '" + model::brief(text) + "'");
  }
  return value;
}

Expected<CaptureInfo> read_info(const Metadata& metadata) {
  RAREFY_ASSIGN_OR_RETURN(const std::string format, field(metadata, "format"));
  if (format != kFormat) {
    return Status::unsupported("__metadata__ format: expected '" + std::string(kFormat) + "', got '" +
                               model::brief(format) + "'; capture again with this version");
  }
  CaptureInfo info;
  RAREFY_ASSIGN_OR_RETURN(info.model_type, field(metadata, "model_type"));
  RAREFY_ASSIGN_OR_RETURN(info.num_layers, number(metadata, "num_layers", 1, kLargestCount));
  RAREFY_ASSIGN_OR_RETURN(info.num_q_heads, number(metadata, "num_q_heads", 1, kLargestCount));
  RAREFY_ASSIGN_OR_RETURN(info.num_kv_heads, number(metadata, "num_kv_heads", 1, kLargestCount));
  RAREFY_ASSIGN_OR_RETURN(info.head_dim, number(metadata, "head_dim", 1, kLargestCount));
  if (info.num_q_heads % info.num_kv_heads != 0) {
    return Status::data_loss("__metadata__: expected num_q_heads to be a multiple of num_kv_heads (" +
                             std::to_string(info.num_kv_heads) + "), got " + std::to_string(info.num_q_heads));
  }
  RAREFY_ASSIGN_OR_RETURN(info.attention_scale, number(metadata, "attention_scale", 1e-9f, 1e9f));
  RAREFY_ASSIGN_OR_RETURN(info.logit_soft_cap, number(metadata, "logit_soft_cap", 0.0f, 1e9f));
  RAREFY_ASSIGN_OR_RETURN(const std::string dtype, field(metadata, "kv_dtype"));
  RAREFY_ASSIGN_OR_RETURN(info.kv_dtype, parse_dtype(dtype));
  if (info.kv_dtype != DType::f32 && info.kv_dtype != DType::f16 && info.kv_dtype != DType::bf16) {
    return Status::unsupported("__metadata__ kv_dtype: expected f32, f16 or bf16, got " + model::brief(dtype));
  }
  for (const auto& [name, text] : metadata) info.origin.emplace(name, text);
  for (const char* known : {"format", "model_type", "num_layers", "num_q_heads", "num_kv_heads", "head_dim",
                            "attention_scale", "logit_soft_cap", "kv_dtype"}) {
    info.origin.erase(known);
  }
  return info;
}

// Elements of any alignment as f32.
void widen(const std::byte* from, DType dtype, int64_t first, int64_t count, float* to) {
  const std::size_t size = size_of(dtype);
  from += static_cast<std::size_t>(first) * size;
  if (dtype == DType::f32) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * size);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, from + 2 * i, sizeof bits);
    to[i] = dtype == DType::bf16 ? to_float(BFloat16{bits}) : to_float(Float16{bits});
  }
}

Expected<const model::StoredTensor*> find(const model::SafetensorsHeader& header, const std::string& name, DType dtype,
                                          const std::vector<int64_t>& shape) {
  const auto found = header.tensors.find(name);
  if (found == header.tensors.end()) {
    return Status::data_loss("expected a tensor '" + name + "', got none; is this a file of rarefy capture?");
  }
  if (found->second.dtype != dtype || found->second.shape != shape) {
    model::StoredTensor wanted;
    wanted.dtype_name = to_string(dtype);
    wanted.shape = shape;
    return Status::data_loss("tensor '" + name + "': expected " + wanted.to_string() + ", got " +
                             found->second.to_string());
  }
  return &found->second;
}

Status check_finite(const std::string& name, const model::StoredTensor& tensor) {
  int64_t count = 1;
  for (const int64_t extent : tensor.shape) count *= extent;
  const int64_t row = tensor.shape[1] * tensor.shape[2];
  std::vector<float> values(static_cast<std::size_t>(row));  // [heads, head_dim] f32
  for (int64_t at = 0; at < count; at += row) {
    widen(tensor.data, *tensor.dtype, at, row, values.data());
    for (int64_t i = 0; i < row; ++i) {
      if (std::isfinite(values[static_cast<std::size_t>(i)])) continue;
      return Status::data_loss("tensor '" + name + "': expected finite numbers, got " +
                               (std::isnan(values[static_cast<std::size_t>(i)]) ? "NaN" : "an infinity") + " in row " +
                               std::to_string(at / row) + ", head " + std::to_string(i / tensor.shape[2]) +
                               "; the model or its computation is at fault, capture again");
    }
  }
  return {};
}

}  // namespace

CaptureInfo CaptureInfo::of_model(const ModelConfig& config, DType kv_dtype) {
  CaptureInfo info;
  info.model_type = config.architecture;
  info.num_layers = config.num_layers;
  info.num_q_heads = config.num_q_heads;
  info.num_kv_heads = config.num_kv_heads;
  info.head_dim = config.head_dim;
  info.kv_dtype = kv_dtype;
  info.attention_scale = config.attention_scale;
  info.logit_soft_cap = config.attention_soft_cap;
  return info;
}

Status CaptureInfo::check_model(const ModelConfig& config) const {
  const CaptureInfo other = of_model(config, kv_dtype);
  const auto differ = [](const std::string& name, const std::string& expected, const std::string& got) {
    return Status::invalid_argument("capture of another model: expected " + name + " " + expected + ", got " + got +
                                    "; name the model it was captured from, or capture again");
  };
  const auto count = [](auto value) { return std::to_string(value); };
  if (other.model_type != model_type) return differ("model_type", other.model_type, model_type);
  if (other.num_layers != num_layers) return differ("num_layers", count(other.num_layers), count(num_layers));
  if (other.num_q_heads != num_q_heads) return differ("num_q_heads", count(other.num_q_heads), count(num_q_heads));
  if (other.num_kv_heads != num_kv_heads) return differ("num_kv_heads", count(other.num_kv_heads), count(num_kv_heads));
  if (other.head_dim != head_dim) return differ("head_dim", count(other.head_dim), count(head_dim));
  if (other.attention_scale != attention_scale)
    return differ("attention_scale", text_of(other.attention_scale), text_of(attention_scale));
  if (other.logit_soft_cap != logit_soft_cap)
    return differ("logit_soft_cap", text_of(other.logit_soft_cap), text_of(logit_soft_cap));
  return {};
}

Expected<std::string> capture_header(const CaptureInfo& info) {
  std::map<std::string, std::string> metadata = info.origin;
  metadata["format"] = kFormat;
  metadata["model_type"] = info.model_type;
  metadata["num_layers"] = std::to_string(info.num_layers);
  metadata["num_q_heads"] = std::to_string(info.num_q_heads);
  metadata["num_kv_heads"] = std::to_string(info.num_kv_heads);
  metadata["head_dim"] = std::to_string(info.head_dim);
  metadata["kv_dtype"] = to_string(info.kv_dtype);
  metadata["attention_scale"] = text_of(info.attention_scale);
  metadata["logit_soft_cap"] = text_of(info.logit_soft_cap);
  const Shapes shapes = shapes_of(info);
  std::vector<TensorEntry> tensors = {{"tokens", DType::i32, shapes.tokens}, {"positions", DType::i32, shapes.positions}};
  for (const int32_t layer : info.layers) {
    tensors.push_back({layer_tensor(layer, "queries"), DType::f32, shapes.queries});
    tensors.push_back({layer_tensor(layer, "keys"), info.kv_dtype, shapes.rows});
    tensors.push_back({layer_tensor(layer, "values"), info.kv_dtype, shapes.rows});
  }
  return safetensors_header(tensors, metadata);
}

struct Capture::Contents {
  struct Layer {
    const std::byte* queries = nullptr;  // [num_steps, num_q_heads, head_dim] f32; any alignment
    const std::byte* keys = nullptr;     // [kv_len, num_kv_heads, head_dim] kv_dtype; any alignment
    const std::byte* values = nullptr;   // [kv_len, num_kv_heads, head_dim] kv_dtype; any alignment
  };

  explicit Contents(model::MappedFile file_in) : file(std::move(file_in)) {}
  Status read();

  model::MappedFile file;
  CaptureInfo info;
  std::vector<int32_t> tokens;     // [kv_len] i32
  std::vector<int32_t> positions;  // [num_steps] i32
  std::vector<Layer> layers;
};

Status Capture::Contents::read() {
  RAREFY_ASSIGN_OR_RETURN(const model::SafetensorsHeader header, model::parse_safetensors(file.bytes()));
  RAREFY_ASSIGN_OR_RETURN(info, read_info(header.metadata));
  const auto length = [&](const char* name) -> Expected<int32_t> {
    const auto found = header.tensors.find(name);
    if (found == header.tensors.end() || found->second.shape.size() != 1) {
      return Status::data_loss("expected a tensor '" + std::string(name) + "' with one dimension, got " +
                               (found == header.tensors.end() ? "none" : found->second.to_string()));
    }
    if (found->second.shape[0] < 1 || found->second.shape[0] > (1 << 30)) {
      return Status::data_loss("tensor '" + std::string(name) + "': expected at least one entry, got " +
                               found->second.to_string() + "; the capture is empty");
    }
    return static_cast<int32_t>(found->second.shape[0]);
  };
  RAREFY_ASSIGN_OR_RETURN(info.kv_len, length("tokens"));
  RAREFY_ASSIGN_OR_RETURN(info.num_steps, length("positions"));
  const Shapes shapes = shapes_of(info);
  const auto read_ids = [&](const char* name, const std::vector<int64_t>& shape, std::vector<int32_t>& ids) -> Status {
    RAREFY_ASSIGN_OR_RETURN(const model::StoredTensor* tensor, find(header, name, DType::i32, shape));
    ids.resize(static_cast<std::size_t>(shape[0]));
    std::memcpy(ids.data(), tensor->data, tensor->size_bytes);
    return {};
  };
  RAREFY_RETURN_IF_ERROR(read_ids("tokens", shapes.tokens, tokens));
  RAREFY_RETURN_IF_ERROR(read_ids("positions", shapes.positions, positions));
  for (std::size_t i = 0; i < positions.size(); ++i) {
    if (positions[i] >= (i == 0 ? 0 : positions[i - 1] + 1) && positions[i] < info.kv_len) continue;
    return Status::data_loss("tensor 'positions': expected ascending positions below kv_len " +
                             std::to_string(info.kv_len) + ", got " + std::to_string(positions[i]) + " at step " +
                             std::to_string(i));
  }
  std::size_t known = 2;
  for (int32_t layer = 0; layer < info.num_layers; ++layer) {
    if (header.tensors.find(layer_tensor(layer, "keys")) == header.tensors.end()) continue;
    Layer found;
    const auto part = [&](const char* name, DType dtype, const std::vector<int64_t>& shape,
                          const std::byte*& data) -> Status {
      const std::string full_name = layer_tensor(layer, name);
      RAREFY_ASSIGN_OR_RETURN(const model::StoredTensor* tensor, find(header, full_name, dtype, shape));
      RAREFY_RETURN_IF_ERROR(check_finite(full_name, *tensor));
      data = tensor->data;
      ++known;
      return {};
    };
    RAREFY_RETURN_IF_ERROR(part("queries", DType::f32, shapes.queries, found.queries));
    RAREFY_RETURN_IF_ERROR(part("keys", info.kv_dtype, shapes.rows, found.keys));
    RAREFY_RETURN_IF_ERROR(part("values", info.kv_dtype, shapes.rows, found.values));
    info.layers.push_back(layer);
    layers.push_back(found);
  }
  if (layers.empty())
    return Status::data_loss("expected at least one tensor 'layers.N.keys', got none; the capture is empty");
  if (known != header.tensors.size()) {
    return Status::data_loss("expected " + std::to_string(known) + " tensors for " + std::to_string(layers.size()) +
                             " layers, got " + std::to_string(header.tensors.size()) +
                             "; num_layers or a tensor's name is wrong");
  }
  return {};
}

Expected<Capture> Capture::load(const std::filesystem::path& path) {
  RAREFY_ASSIGN_OR_RETURN(model::MappedFile file, model::MappedFile::open(path));
  auto contents = std::make_shared<Contents>(std::move(file));
  RAREFY_RETURN_IF_ERROR(contents->read().with_context(path.string()));
  return Capture(std::move(contents));
}

const CaptureInfo& Capture::info() const { return contents_->info; }
std::span<const int32_t> Capture::tokens() const { return contents_->tokens; }
std::span<const int32_t> Capture::positions() const { return contents_->positions; }

void Capture::read_queries(int32_t slot, int32_t step, float* q) const {
  const int64_t row = int64_t{info().num_q_heads} * info().head_dim;
  widen(contents_->layers[static_cast<std::size_t>(slot)].queries, DType::f32, step * row, row, q);
}

void Capture::read_keys(int32_t slot, int32_t first_token, int32_t num_tokens, float* rows) const {
  const int64_t row = int64_t{info().num_kv_heads} * info().head_dim;
  widen(contents_->layers[static_cast<std::size_t>(slot)].keys, info().kv_dtype, first_token * row, num_tokens * row, rows);
}

void Capture::read_values(int32_t slot, int32_t first_token, int32_t num_tokens, float* rows) const {
  const int64_t row = int64_t{info().num_kv_heads} * info().head_dim;
  widen(contents_->layers[static_cast<std::size_t>(slot)].values, info().kv_dtype, first_token * row, num_tokens * row,
        rows);
}

}  // namespace rarefy
