#include "rarefy/model/known_models.h"

#include <algorithm>
#include <cctype>

namespace rarefy {
namespace {

constexpr int32_t kLinearHeadDim = 128;
constexpr int32_t kConvKernel = 4;

constexpr std::string_view kInferred = "whether it is one of the twenty is not confirmed";
constexpr std::string_view kThirdParty = "sizes come from third parties and the sizes of checkpoints";
constexpr std::string_view kBoth = "sizes come from third parties; whether it is one of the twenty is not confirmed";

// id, family, layers, hidden, MLP, query heads, KV heads, head_dim, vocabulary, longest context, tied, every so-manyth layer is
// full, window, linear key and value heads, spare, doubt. The list of arXiv 2605.24168 itself was not at hand: thirteen of these
// are named in its authors' repository, the others are what makes twenty.
constexpr KnownModel kModels[] = {
    {"meta-llama/Llama-3.2-1B-Instruct", "llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072, true, 1, 0, 0, 0, false, ""},
    {"meta-llama/Llama-3.2-3B-Instruct", "llama", 28, 3072, 8192, 24, 8, 128, 128256, 131072, true, 1, 0, 0, 0, false, ""},
    {"meta-llama/Llama-3.1-8B-Instruct", "llama", 32, 4096, 14336, 32, 8, 128, 128256, 131072, false, 1, 0, 0, 0, false,
     ""},
    {"Qwen/Qwen2.5-1.5B-Instruct", "qwen2", 28, 1536, 8960, 12, 2, 128, 151936, 32768, true, 1, 0, 0, 0, false, ""},
    {"Qwen/Qwen2.5-7B-Instruct", "qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 32768, false, 1, 0, 0, 0, false, ""},
    {"Qwen/Qwen2.5-14B-Instruct", "qwen2", 48, 5120, 13824, 40, 8, 128, 152064, 32768, false, 1, 0, 0, 0, false, ""},
    {"Qwen/Qwen2.5-32B-Instruct", "qwen2", 64, 5120, 27648, 40, 8, 128, 152064, 32768, false, 1, 0, 0, 0, false, kInferred},
    {"Qwen/Qwen2.5-72B-Instruct", "qwen2", 80, 8192, 29568, 64, 8, 128, 152064, 32768, false, 1, 0, 0, 0, false, kInferred},
    {"Qwen/Qwen3.5-0.8B", "qwen3_5", 24, 1024, 3584, 8, 2, 256, 248320, 262144, true, 4, 0, 16, 16, false, kBoth},
    {"Qwen/Qwen3.5-2B", "qwen3_5", 24, 2048, 6144, 8, 2, 256, 248320, 262144, true, 4, 0, 16, 16, false, kBoth},
    {"Qwen/Qwen3.5-4B", "qwen3_5", 32, 2560, 9216, 16, 4, 256, 248320, 262144, true, 4, 0, 16, 32, false, kBoth},
    {"Qwen/Qwen3.5-9B", "qwen3_5", 32, 4096, 12288, 16, 4, 256, 248320, 262144, false, 4, 0, 16, 32, false, kThirdParty},
    {"Qwen/Qwen3.5-27B", "qwen3_5", 64, 5120, 17408, 24, 4, 256, 248320, 262144, false, 4, 0, 16, 48, false, kThirdParty},
    {"google/gemma-3-1b-it", "gemma3", 26, 1152, 6912, 4, 1, 256, 262144, 32768, true, 6, 512, 0, 0, false, kInferred},
    {"google/gemma-3-4b-it", "gemma3", 34, 2560, 10240, 8, 4, 256, 262208, 131072, true, 6, 1024, 0, 0, false, kInferred},
    {"google/gemma-3-12b-it", "gemma3", 48, 3840, 15360, 16, 8, 256, 262208, 131072, true, 6, 1024, 0, 0, false, kInferred},
    {"google/gemma-3-27b-it", "gemma3", 62, 5376, 21504, 32, 16, 128, 262208, 131072, true, 6, 1024, 0, 0, false,
     kInferred},
    {"mistralai/Ministral-3-3B-Instruct-2512", "ministral3", 26, 3072, 9216, 32, 8, 128, 131072, 262144, true, 1, 0, 0, 0,
     false, ""},
    {"mistralai/Ministral-3-8B-Instruct-2512", "ministral3", 34, 4096, 14336, 32, 8, 128, 131072, 262144, false, 1, 0, 0, 0,
     false, ""},
    {"mistralai/Ministral-3-14B-Instruct-2512", "ministral3", 40, 5120, 16384, 32, 8, 128, 131072, 262144, false, 1, 0, 0,
     0, false, ""},
    {"Qwen/Qwen2.5-0.5B-Instruct", "qwen2", 24, 896, 4864, 14, 2, 64, 151936, 32768, true, 1, 0, 0, 0, true, ""},
    {"Qwen/Qwen2.5-3B-Instruct", "qwen2", 36, 2048, 11008, 16, 2, 128, 151936, 32768, true, 1, 0, 0, 0, true, ""},
};

bool same_without_case(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return std::tolower(static_cast<unsigned char>(c)); };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](char x, char y) { return lower(x) == lower(y); });
}

int64_t conv_width(const KnownModel& model) {
  return int64_t{2 * model.num_linear_key_heads + model.num_linear_value_heads} * kLinearHeadDim;
}

}  // namespace

int64_t KnownModel::num_parameters() const {
  const int64_t hidden = hidden_size, q = int64_t{num_q_heads} * head_dim, kv = int64_t{num_kv_heads} * head_dim;
  const int64_t mlp = 3 * hidden * intermediate_size;
  const int64_t norms = (family == "gemma3" ? 4 : 2) * hidden;
  int64_t attention = 2 * hidden * q + 2 * hidden * kv;
  if (family == "qwen2") attention += q + 2 * kv;                            // biases
  if (family == "gemma3" || family == "qwen3_5") attention += 2 * head_dim;  // norms of queries and keys
  if (family == "qwen3_5") attention += hidden * q;                          // output gate
  int64_t other = attention;
  if (num_linear_value_heads > 0) {
    const int64_t values = int64_t{num_linear_value_heads} * kLinearHeadDim;
    // Projections in, gates a and b, convolution, decay and its bias, norm, projection out.
    other = hidden * (conv_width(*this) + values + 2 * num_linear_value_heads) + conv_width(*this) * kConvKernel +
            2 * num_linear_value_heads + kLinearHeadDim + values * hidden;
  }
  return (tied ? 1 : 2) * int64_t{vocab_size} * hidden + hidden + num_layers * (mlp + norms) +
         num_full_layers() * attention + num_other_layers() * other;
}

int64_t KnownModel::step_weight_bytes() const {
  return weight_bytes() - (tied ? 0 : int64_t{2} * vocab_size * hidden_size);
}

int64_t KnownModel::kv_bytes_per_token(DType kv_dtype) const {
  return int64_t{2} * num_full_layers() * num_kv_heads * head_dim * static_cast<int64_t>(size_of(kv_dtype));
}

int64_t KnownModel::fixed_bytes(DType kv_dtype) const {
  const int64_t row = int64_t{2} * num_kv_heads * head_dim * static_cast<int64_t>(size_of(kv_dtype));
  const int64_t state_floats =
      int64_t{num_linear_value_heads} * kLinearHeadDim * kLinearHeadDim + (kConvKernel - 1) * conv_width(*this);
  return num_other_layers() * (sliding_window * row + state_floats * int64_t{sizeof(float)});
}

std::span<const KnownModel> known_models() { return kModels; }

const KnownModel* find_known_model(std::string_view name) {
  for (const KnownModel& model : kModels) {
    if (same_without_case(model.id, name) || same_without_case(model.id.substr(model.id.find('/') + 1), name))
      return &model;
  }
  return nullptr;
}

}  // namespace rarefy
