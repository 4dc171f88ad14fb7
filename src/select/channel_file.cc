#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "select/channel_codes.h"

namespace rarefy {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 28;

}  // namespace

Expected<ChannelFile> ChannelFile::load(const std::string& path, const SelectorShape& shape, int32_t num_channels) {
  const std::string context = "selector: channels=" + path + ": ";
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return Status::not_found(context + "cannot be opened; make it with `rarefy calibrate`");
  std::string text;
  for (char buffer[1 << 16]; stream.read(buffer, sizeof(buffer)), stream.gcount() > 0;) {
    text.append(buffer, static_cast<size_t>(stream.gcount()));
    if (text.size() > kMaxFileBytes)
      return Status::invalid_argument(context + "expected a list of channels, got a file of more than 256 MiB");
  }
  if (stream.bad()) return Status::io_error(context + "cannot be read");
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  const auto bad = [&](const std::string& what) { return Status::invalid_argument(context + what); };
  if (!json.is_object() || !json.contains("head_dim") || !json["head_dim"].is_number_integer() ||
      !json.contains("layers") || !json["layers"].is_array()) {
    return bad(R"(expected JSON {"head_dim": D, "layers": [[[channels of a KV head], ...], ...]})");
  }
  if (json["head_dim"].get<int64_t>() != shape.head_dim) {
    return bad("made for head_dim " + json["head_dim"].dump() + ", the model has " + std::to_string(shape.head_dim) +
               "; calibrate on this model");
  }
  const auto& layers = json["layers"];
  if (layers.size() != static_cast<size_t>(shape.num_layers)) {
    return bad("made for " + std::to_string(layers.size()) + " layers, the model has " + std::to_string(shape.num_layers) +
               "; calibrate on this model");
  }
  ChannelFile file;
  file.path = path;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    const std::string where = "layer " + std::to_string(layer);
    const auto& heads = layers[layer];
    if (!heads.is_array() || (!heads.empty() && heads.size() != static_cast<size_t>(shape.num_kv_heads))) {
      return bad(where + ": expected no list or one for each of " + std::to_string(shape.num_kv_heads) + " KV heads");
    }
    auto& to = file.channels.emplace_back();
    for (const auto& ids : heads) {
      if (!ids.is_array() || ids.size() < static_cast<size_t>(num_channels)) {
        return bad(where + ": expected at least " + std::to_string(num_channels) + " channels for each KV head, got " +
                   std::to_string(ids.is_array() ? ids.size() : 0));
      }
      auto& chosen = to.emplace_back();
      for (size_t i = 0; i < static_cast<size_t>(num_channels); ++i) {
        const bool fits =
            ids[i].is_number_integer() && ids[i].get<int64_t>() >= 0 && ids[i].get<int64_t>() < shape.head_dim;
        if (!fits || std::find(chosen.begin(), chosen.end(), ids[i].get<int32_t>()) != chosen.end()) {
          return bad(where + ": expected different channels from 0 to " + std::to_string(shape.head_dim - 1) + ", got " +
                     ids[i].dump() + (fits ? " twice" : ""));
        }
        chosen.push_back(ids[i].get<int32_t>());
      }
    }
  }
  return file;
}

}  // namespace rarefy
