// TensorReader: the tensors of a checkpoint by name, checked for shape and type, converted to what the layers hold. Remembers
// what was read, so that what was not can be reported. Pages of the file that were read are given back to the system at once:
// loading takes the weights' memory and little more. Belongs to one thread.
#pragma once

#include <initializer_list>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/matmul/matmul.h"
#include "model/checkpoint.h"
#include "rarefy/core/status.h"

namespace rarefy::model {

class TensorReader {
 public:
  TensorReader(const Checkpoint& checkpoint, DType weight_dtype) : checkpoint_(checkpoint), weight_dtype_(weight_dtype) {}

  // Appends a tensor of this shape to `values` in f32.
  Status append(const std::string& name, std::initializer_list<int64_t> shape,
                std::vector<float>& values);  // values: [count before + elements] f32

  struct Part {
    std::string name;  // without ".weight" and ".bias"
    int64_t rows;
  };
  // Matrices with one input, one under the other, and their biases.
  Status matmul(std::initializer_list<Part> parts, int64_t in_dim, bool has_bias, cpu::Matmul& out);

  bool was_read(const std::string& name) const { return read_.count(name) > 0; }

 private:
  Expected<const StoredTensor*> find(const std::string& name, std::initializer_list<int64_t> shape);
  Status add_scales(const std::string& name, const StoredTensor& weight, cpu::WeightPart& part,
                    std::vector<float>& scales);  // scales: [scale rows, scale columns] f32

  const Checkpoint& checkpoint_;
  DType weight_dtype_;
  std::set<std::string, std::less<>> read_;
};

}  // namespace rarefy::model
