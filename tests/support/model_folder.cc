#include "tests/support/model_folder.h"

#include <unistd.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "model/safetensors.h"

namespace rarefy::testing {
namespace {

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string stored_name(DType dtype) { return dtype == DType::f32 ? "F32" : dtype == DType::f16 ? "F16" : "BF16"; }

}  // namespace

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "rarefy-test-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make a temporary folder");
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void TemporaryFolder::copy_from(const std::filesystem::path& folder) const {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::filesystem::copy_file(entry.path(), path_ / entry.path().filename(),
                               std::filesystem::copy_options::overwrite_existing);
  }
}

void TemporaryFolder::write(std::string_view name, std::string_view content) const {
  std::ofstream file(path_ / name, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + (path_ / name).string());
}

std::string TemporaryFolder::read(std::string_view name) const { return read_file(path_ / name); }

std::string safetensors_bytes(std::string_view header, std::string_view data) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(static_cast<uint64_t>(header.size()) >> (8 * i) & 0xff);
  return file.append(header).append(data);
}

std::string safetensors_bytes(const TensorMap& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return safetensors_bytes(text, data);
}

TensorMap read_safetensors(const std::filesystem::path& path) {
  const std::string file = read_file(path);
  const auto parsed = model::parse_safetensors(std::as_bytes(std::span(file)));
  if (!parsed) throw std::runtime_error(path.string() + ": " + parsed.status().to_string());
  TensorMap tensors;
  for (const auto& [name, tensor] : parsed->tensors) {
    tensors[name] = {tensor.dtype_name, tensor.shape,
                     std::string(reinterpret_cast<const char*>(tensor.data), tensor.size_bytes)};
  }
  return tensors;
}

TensorBytes converted(const TensorBytes& tensor, DType dtype) {
  const DType from = tensor.dtype == "F32" ? DType::f32 : tensor.dtype == "F16" ? DType::f16 : DType::bf16;
  const std::size_t count = tensor.bytes.size() / size_of(from);
  TensorBytes result{stored_name(dtype), tensor.shape, std::string(count * size_of(dtype), '\0')};
  for (std::size_t i = 0; i < count; ++i) {
    store_from_float(result.bytes.data(), dtype, static_cast<int64_t>(i),
                     load_as_float(tensor.bytes.data(), from, static_cast<int64_t>(i)));
  }
  return result;
}

}  // namespace rarefy::testing
