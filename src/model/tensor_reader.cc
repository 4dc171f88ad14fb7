#include "model/tensor_reader.h"

#include <algorithm>
#include <deque>

#include "model/json_file.h"

namespace rarefy::model {
namespace {

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

bool is_float(const StoredTensor& tensor) {
  return tensor.dtype && (*tensor.dtype == DType::f32 || *tensor.dtype == DType::f16 || *tensor.dtype == DType::bf16);
}

constexpr int64_t kSliceBytes = int64_t{64} << 20;

void release_slice(const void* data,  // [bytes] bytes
                   std::size_t bytes) {
  MappedFile::release({static_cast<const std::byte*>(data), bytes});
}

}  // namespace

Expected<const StoredTensor*> TensorReader::find(const std::string& name, std::initializer_list<int64_t> shape) {
  const StoredTensor* stored = checkpoint_.find(name);
  if (stored == nullptr) {
    return Status::not_found("expected tensor '" + name + "' of shape " + shape_text({shape.begin(), shape.size()}) +
                             ", found none; does config.json belong to these weights?");
  }
  if (!std::equal(shape.begin(), shape.end(), stored->shape.begin(), stored->shape.end())) {
    return Status::data_loss("expected tensor '" + name + "' of shape " + shape_text({shape.begin(), shape.size()}) +
                             ", got " + stored->to_string() + "; does config.json belong to these weights?");
  }
  read_.insert(name);
  return stored;
}

Status TensorReader::append(const std::string& name, std::initializer_list<int64_t> shape, std::vector<float>& values) {
  RAREFY_ASSIGN_OR_RETURN(const StoredTensor* stored, find(name, shape));
  if (!is_float(*stored)) {
    return Status::unsupported("expected tensor '" + name + "' of type F32, F16 or BF16, got " + stored->dtype_name);
  }
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  const std::size_t before = values.size();
  values.resize(before + static_cast<std::size_t>(count));
  return cpu::convert_elements(stored->data, *stored->dtype, count, DType::f32, values.data() + before);
}

// fp8 weights come with one scale for the tensor, or one for each block of a grid that divides it evenly.
Status TensorReader::add_scales(const std::string& name, const StoredTensor& weight, cpu::WeightPart& part,
                                std::vector<float>& scales) {
  const std::string scale_name = name + "_scale_inv";
  const StoredTensor* stored = checkpoint_.find(scale_name);
  if (stored == nullptr || !is_float(*stored)) {
    return Status::not_found("expected the scale of fp8 tensor '" + name + "' in '" + scale_name +
                             "' of type F32, F16 or BF16, " +
                             (stored == nullptr ? std::string("found none") : "got " + stored->to_string()));
  }
  const bool is_grid = stored->shape.size() == 2;
  part.scale_rows = is_grid ? stored->shape[0] : 1;
  part.scale_columns = is_grid ? stored->shape[1] : 1;
  const int64_t count = part.scale_rows * part.scale_columns;
  const bool fits = stored->size_bytes == static_cast<std::size_t>(count) * size_of(*stored->dtype) && count > 0 &&
                    weight.shape[0] % part.scale_rows == 0 && weight.shape[1] % part.scale_columns == 0;
  if (!fits) {
    return Status::data_loss("expected '" + scale_name + "' to be one scale, or a grid that divides " + weight.to_string() +
                             " evenly, got " + stored->to_string());
  }
  scales.resize(static_cast<std::size_t>(count));
  RAREFY_RETURN_IF_ERROR(cpu::convert_elements(stored->data, *stored->dtype, count, DType::f32, scales.data()));
  part.scales = scales.data();
  read_.insert(scale_name);
  // Scales of activations, which are not quantised here.
  for (const char* suffix : {"activation_scale", "weight_scale_inv"}) {
    read_.insert(name.substr(0, name.size() - std::string_view("weight").size()) + suffix);
  }
  return {};
}

Status TensorReader::matmul(std::initializer_list<Part> parts, int64_t in_dim, bool has_bias, cpu::Matmul& out) {
  std::vector<cpu::WeightPart> weights;
  std::deque<std::vector<float>> scales;  // one for each fp8 part
  std::vector<float> bias;
  for (const Part& part : parts) {
    const std::string name = part.name + ".weight";
    RAREFY_ASSIGN_OR_RETURN(const StoredTensor* stored, find(name, {part.rows, in_dim}));
    const bool is_fp8 = stored->dtype && *stored->dtype == DType::f8_e4m3;
    if (!is_float(*stored) && !is_fp8) {
      return Status::unsupported("expected tensor '" + name + "' of type F32, F16, BF16 or F8_E4M3, got " +
                                 stored->dtype_name);
    }
    // In slices, so that little of the file is in memory beside what was made of it.
    const int64_t row_bytes = in_dim * static_cast<int64_t>(size_of(*stored->dtype));
    const int64_t slice_rows = is_fp8 ? part.rows : std::max<int64_t>(1, kSliceBytes / row_bytes);
    for (int64_t row = 0; row < part.rows; row += slice_rows) {
      cpu::WeightPart& weight = weights.emplace_back();
      weight.data = stored->data + row * row_bytes;
      weight.dtype = *stored->dtype;
      weight.rows = std::min(slice_rows, part.rows - row);
      weight.done = release_slice;
      if (is_fp8) RAREFY_RETURN_IF_ERROR(add_scales(name, *stored, weight, scales.emplace_back()));
    }
    if (has_bias) RAREFY_RETURN_IF_ERROR(append(part.name + ".bias", {part.rows}, bias));
  }
  RAREFY_ASSIGN_OR_RETURN(out, cpu::Matmul::make(weights, in_dim, weight_dtype_, std::move(bias)));
  return {};
}

}  // namespace rarefy::model
