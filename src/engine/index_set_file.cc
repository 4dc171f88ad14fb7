#include "rarefy/engine/index_set_file.h"

#include <cstring>
#include <limits>
#include <optional>

#include "model/mapped_file.h"
#include "model/numpy.h"
#include "model/safetensors.h"
#include "rarefy/model/safetensors_header.h"

namespace rarefy {
namespace {

constexpr int64_t kLargestExtent = 1 << 30;

using Arrays = std::map<std::string, model::StoredTensor, std::less<>>;

Expected<Arrays> read_arrays(const std::filesystem::path& path, std::span<const std::byte> file) {
  if (path.extension() == ".npz") return model::parse_npz(file);
  Arrays arrays;
  if (path.extension() == ".npy") {
    RAREFY_ASSIGN_OR_RETURN(arrays["token_ids"], model::parse_npy(file));
    return arrays;
  }
  if (path.extension() != ".safetensors") {
    return Status::unsupported("expected a file that ends in .safetensors, .npz or .npy, got '" + path.filename().string() +
                               "'");
  }
  RAREFY_ASSIGN_OR_RETURN(model::SafetensorsHeader header, model::parse_safetensors(file));
  return std::move(header.tensors);
}

// Integers of 32 or 64 bits that fit 32.
Expected<std::vector<int32_t>> read_integers(const std::string& name, const model::StoredTensor& tensor) {
  const bool wide = tensor.dtype_name == "I64";
  if (!wide && tensor.dtype != DType::i32) {
    return Status::data_loss(name + ": expected 32- or 64-bit integers, got " + tensor.to_string());
  }
  const std::size_t count = tensor.size_bytes / (wide ? sizeof(int64_t) : sizeof(int32_t));
  std::vector<int32_t> values(count);
  if (!wide) {
    if (count > 0) std::memcpy(values.data(), tensor.data, tensor.size_bytes);
    return values;
  }
  for (std::size_t i = 0; i < count; ++i) {
    int64_t value = 0;
    std::memcpy(&value, tensor.data + i * sizeof value, sizeof value);
    if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
      return Status::data_loss(name + ": expected numbers of at most 32 bits, got " + std::to_string(value));
    }
    values[i] = static_cast<int32_t>(value);
  }
  return values;
}

Expected<LayerIndexSet> read_layer(const Arrays& arrays, int32_t layer, bool alone) {
  const std::string prefix = "layers." + std::to_string(layer) + ".";
  const auto find = [&](const std::string& name) {
    const auto found = arrays.find(prefix + name);
    return found == arrays.end() && alone ? arrays.find(name) : found;
  };
  const auto ids = find("token_ids"), counts = find("counts"), weights = find("log_weight");
  if (ids == arrays.end()) {
    return Status::data_loss("expected an array '" + prefix + "token_ids'" + (alone ? " or 'token_ids'" : "") +
                             ", got none");
  }
  const std::vector<int64_t>& shape = ids->second.shape;
  const auto fits = [](int64_t extent) { return extent >= 1 && extent <= kLargestExtent; };
  if (shape.size() != 3 || !fits(shape[0]) || !fits(shape[1]) || !fits(shape[2])) {
    return Status::data_loss(ids->first + ": expected [num_steps, num_lists, max_selected], got " +
                             ids->second.to_string());
  }
  RAREFY_ASSIGN_OR_RETURN(const std::vector<int32_t> token_ids, read_integers(ids->first, ids->second));
  LayerIndexSet result;
  result.layer = layer;
  const auto num_steps = static_cast<int32_t>(shape[0]), num_lists = static_cast<int32_t>(shape[1]);
  const auto max_selected = static_cast<int32_t>(shape[2]);
  result.set.resize(num_steps, num_lists, max_selected);
  std::memcpy(result.set.token_ids(0, 0), token_ids.data(), token_ids.size() * sizeof(int32_t));
  std::vector<int32_t> list_counts(static_cast<std::size_t>(shape[0] * shape[1]),
                                   max_selected);  // [num_steps, num_lists] i32
  if (counts != arrays.end()) {
    if (counts->second.shape != std::vector<int64_t>{shape[0], shape[1]}) {
      return Status::data_loss(counts->first + ": expected [" + std::to_string(num_steps) + ", " +
                               std::to_string(num_lists) + "] as in token_ids, got " + counts->second.to_string());
    }
    RAREFY_ASSIGN_OR_RETURN(list_counts, read_integers(counts->first, counts->second));
  }
  std::memcpy(&result.set.count(0, 0), list_counts.data(), list_counts.size() * sizeof(int32_t));
  if (weights != arrays.end()) {
    if (weights->second.dtype != DType::f32 || weights->second.shape != shape) {
      return Status::data_loss(weights->first + ": expected f32 of the shape of token_ids, got " +
                               weights->second.to_string());
    }
    std::memcpy(result.set.log_weight(0, 0), weights->second.data, weights->second.size_bytes);
  }
  return result;
}

// What is past the counts in file order, so that a file's bytes depend on the lists only.
template <typename T>
std::vector<T> padded(const LayerIndexSet& one, int32_t longest,
                      const T* values) {  // values [batch, num_lists, max_selected]
  const IndexSetView view = one.set.view();
  const int64_t rows = int64_t{one.set.batch()} * view.num_lists;
  std::vector<T> result(static_cast<std::size_t>(rows * longest));
  for (int64_t row = 0; row < rows; ++row) {
    for (int32_t i = 0; i < view.counts[row]; ++i)
      result[static_cast<std::size_t>(row * longest + i)] = values[row * view.max_selected + i];
  }
  return result;
}

int32_t longest_list(const LayerIndexSet& one) {
  const IndexSetView view = one.set.view();
  int32_t longest = 1;
  for (int64_t row = 0; row < int64_t{one.set.batch()} * view.num_lists; ++row)
    longest = std::max(longest, view.counts[row]);
  return longest;
}

}  // namespace

Expected<std::vector<LayerIndexSet>> load_index_sets(const std::filesystem::path& path,
                                                     const std::vector<int32_t>& layers) {
  RAREFY_ASSIGN_OR_RETURN(const model::MappedFile file, model::MappedFile::open(path));
  const auto read = [&]() -> Expected<std::vector<LayerIndexSet>> {
    RAREFY_ASSIGN_OR_RETURN(const Arrays arrays, read_arrays(path, file.bytes()));
    std::vector<LayerIndexSet> sets;
    for (const int32_t layer : layers) {
      RAREFY_ASSIGN_OR_RETURN(LayerIndexSet set, read_layer(arrays, layer, layers.size() == 1));
      sets.push_back(std::move(set));
    }
    return sets;
  };
  auto sets = read();
  if (!sets) return sets.status().with_context(path.string());
  return sets;
}

Status save_index_sets(const std::vector<LayerIndexSet>& sets,
                       const std::function<Status(std::span<const std::byte>)>& write) {
  std::vector<TensorEntry> entries;
  for (const LayerIndexSet& one : sets) {
    const std::string prefix = "layers." + std::to_string(one.layer) + ".";
    const int64_t num_steps = one.set.batch(), num_lists = one.set.num_lists(), longest = longest_list(one);
    entries.push_back({prefix + "token_ids", DType::i32, {num_steps, num_lists, longest}});
    entries.push_back({prefix + "counts", DType::i32, {num_steps, num_lists}});
    entries.push_back({prefix + "log_weight", DType::f32, {num_steps, num_lists, longest}});
  }
  RAREFY_ASSIGN_OR_RETURN(const std::string header, safetensors_header(entries, {{"format", "rarefy-index-set-1"}}));
  RAREFY_RETURN_IF_ERROR(write(std::as_bytes(std::span(header))));
  for (const LayerIndexSet& one : sets) {
    const IndexSetView view = one.set.view();
    const int32_t longest = longest_list(one);
    const auto ids = padded(one, longest, view.token_ids);
    const auto weights = padded(one, longest, view.log_weight);
    const std::span counts(view.counts, static_cast<std::size_t>(int64_t{one.set.batch()} * view.num_lists));
    RAREFY_RETURN_IF_ERROR(write(std::as_bytes(std::span(ids))));
    RAREFY_RETURN_IF_ERROR(write(std::as_bytes(counts)));
    RAREFY_RETURN_IF_ERROR(write(std::as_bytes(std::span(weights))));
  }
  return {};
}

}  // namespace rarefy
