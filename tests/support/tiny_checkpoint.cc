#include "tests/support/tiny_checkpoint.h"

#include <unistd.h>

#include <cmath>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "rarefy/core/dtype.h"

namespace rarefy::testing {
namespace {

// The printable character that stands for a byte in byte-level vocabularies (Radford et al., GPT-2), as UTF-8.
std::string printable_byte(int32_t byte) {
  static const std::vector<int32_t> code_points = [] {
    std::vector<int32_t> table(256, -1);
    const auto printable = [](int32_t b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
    int32_t next = 256;
    for (int32_t b = 0; b < 256; ++b) table[b] = printable(b) ? b : next++;
    return table;
  }();
  const int32_t code_point = code_points[byte];
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
}

nlohmann::json tokenizer_json() {
  nlohmann::json vocab = nlohmann::json::object();
  for (int32_t byte = 0; byte < 256; ++byte) vocab[printable_byte(byte)] = byte;
  const auto added = [](int32_t id, const char* content) {
    return nlohmann::json{{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                          {"rstrip", false}, {"normalized", false}, {"special", true}};
  };
  return {
      {"version", "1.0"},
      {"added_tokens", {added(256, "<|begin_of_text|>"), added(257, "<|end_of_text|>")}},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", nlohmann::json::array()}}}};
}

}  // namespace

TinyCheckpoint::TinyCheckpoint(const TinyCheckpointOptions& o) {
  std::string pattern = (std::filesystem::temp_directory_path() / "rarefy-tiny-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make a temporary folder");
  folder_ = pattern;

  const nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                                 {"model_type", "llama"},
                                 {"vocab_size", kVocabSize},
                                 {"hidden_size", o.hidden_size},
                                 {"intermediate_size", o.intermediate_size},
                                 {"num_hidden_layers", o.num_layers},
                                 {"num_attention_heads", o.num_q_heads},
                                 {"num_key_value_heads", o.num_kv_heads},
                                 {"head_dim", o.head_dim},
                                 {"rms_norm_eps", 1e-5},
                                 {"rope_theta", 10000.0},
                                 {"max_position_embeddings", o.max_position_embeddings},
                                 {"tie_word_embeddings", true},
                                 {"hidden_act", "silu"},
                                 {"bos_token_id", 256},
                                 {"eos_token_id", 257},
                                 {"torch_dtype", "bfloat16"}};
  write_text(folder_ / "config.json", config.dump());
  write_text(folder_ / "tokenizer.json", tokenizer_json().dump());

  std::mt19937 random(o.seed);
  std::map<std::string, std::vector<int64_t>> shapes;  // sorted, so that the file depends on the seed alone
  shapes["model.embed_tokens.weight"] = {kVocabSize, o.hidden_size};
  shapes["model.norm.weight"] = {o.hidden_size};
  for (int32_t layer = 0; layer < o.num_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    shapes[prefix + "input_layernorm.weight"] = {o.hidden_size};
    shapes[prefix + "post_attention_layernorm.weight"] = {o.hidden_size};
    shapes[prefix + "self_attn.q_proj.weight"] = {int64_t{o.num_q_heads} * o.head_dim, o.hidden_size};
    shapes[prefix + "self_attn.k_proj.weight"] = {int64_t{o.num_kv_heads} * o.head_dim, o.hidden_size};
    shapes[prefix + "self_attn.v_proj.weight"] = {int64_t{o.num_kv_heads} * o.head_dim, o.hidden_size};
    shapes[prefix + "self_attn.o_proj.weight"] = {o.hidden_size, int64_t{o.num_q_heads} * o.head_dim};
    shapes[prefix + "mlp.gate_proj.weight"] = {o.intermediate_size, o.hidden_size};
    shapes[prefix + "mlp.up_proj.weight"] = {o.intermediate_size, o.hidden_size};
    shapes[prefix + "mlp.down_proj.weight"] = {o.hidden_size, o.intermediate_size};
  }
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [name, shape] : shapes) {
    const bool is_norm = shape.size() == 1;
    const int64_t count = is_norm ? shape[0] : shape[0] * shape[1];
    // Logits with a standard deviation of about 1.5 nats: q and k entries of unit variance times head_dim^-1/2 give 1.
    const bool is_qk = name.find("q_proj") != std::string::npos || name.find("k_proj") != std::string::npos;
    std::normal_distribution<float> normal(
        is_norm ? 1.0f : 0.0f, is_norm ? 0.1f : (is_qk ? 1.22f : 1.0f) / std::sqrt(static_cast<float>(shape.back())));
    const size_t begin = data.size();
    for (int64_t i = 0; i < count; ++i) {
      const BFloat16 value = to_bfloat16(normal(random));
      data.append(reinterpret_cast<const char*>(&value.bits), 2);
    }
    header[name] = {{"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  while (text.size() % 8 != 0) text += ' ';
  const uint64_t size = text.size();
  write_text(folder_ / "model.safetensors", std::string(reinterpret_cast<const char*>(&size), 8) + text + data);
}

TinyCheckpoint::~TinyCheckpoint() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

}  // namespace rarefy::testing
