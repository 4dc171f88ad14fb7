// Model folders made for a test: a temporary folder that goes away with its object, and safetensors files of any content.
// Failures throw, which fails the test.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "rarefy/core/dtype.h"

namespace rarefy::testing {

class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  // Copies the files of another folder here, over files of the same name.
  void copy_from(const std::filesystem::path& folder) const;
  void write(std::string_view name, std::string_view content) const;
  std::string read(std::string_view name) const;

 private:
  std::filesystem::path path_;
};

struct TensorBytes {
  std::string dtype;  // "BF16"
  std::vector<int64_t> shape;
  std::string bytes;  // [shape...] dtype
};
using TensorMap = std::map<std::string, TensorBytes>;

std::string safetensors_bytes(const TensorMap& tensors);
// A file from its header text and what follows it, right or wrong.
std::string safetensors_bytes(std::string_view header, std::string_view data);
TensorMap read_safetensors(const std::filesystem::path& path);
// The same values as f32, f16 or bf16. Pre: the tensor is f32, f16 or bf16.
TensorBytes converted(const TensorBytes& tensor, DType dtype);

}  // namespace rarefy::testing
