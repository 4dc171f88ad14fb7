// Decode attention on a GPU with an AttentionCase: inputs, outputs and workspace are copies in device memory between guard
// bands, outputs poisoned before and guards checked after.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "tests/support/decode_runs.h"

namespace rarefy::test {

inline constexpr Device kGpu{DeviceKind::cuda, 0};

// Device memory between two guard bands of 0xff; all 0xff at first: NaN in f32, f16, bf16 and e4m3, -1 in i32.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t bytes);
  static DeviceBuffer copy_of(const void* host, std::size_t bytes);  // host [bytes] bytes

  void* data() const { return static_cast<unsigned char*>(base_.get()) + kGuard; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data());
  }
  std::size_t size() const { return bytes_; }
  void poison();
  bool intact() const;
  std::vector<unsigned char> bytes() const;
  template <typename T>
  std::vector<T> values() const {
    const std::vector<unsigned char> raw = bytes();
    std::vector<T> result(raw.size() / sizeof(T));
    std::copy(raw.begin(), raw.end(), reinterpret_cast<unsigned char*>(result.data()));
    return result;
  }

 private:
  static constexpr std::size_t kGuard = 512;
  struct Free {
    void operator()(void* pointer) const { cudaFree(pointer); }
  };
  std::size_t bytes_;
  std::unique_ptr<void, Free> base_;  // [guard + bytes + guard] bytes
};

// Everything of one case on the GPU. The AttentionData may be changed before it is passed in.
class DeviceDecode {
 public:
  DeviceDecode(DecodeOp op, AttentionData& data);

  DecodeProblem problem() const { return problem_; }
  // Of one run; all optional outputs unless `args` is changed before.
  DecodeArgs args();
  Expected<DecodePlan> plan() const { return DecodePlan::make(op_, kGpu, problem_); }
  // Runs a fresh plan once and returns the outputs; checks status, guards and that check() has nothing to say.
  DecodeOutputs run();
  DecodeOutputs outputs() const;
  void poison_outputs();
  void reserve_workspace(const DecodePlan& plan);
  bool guards_intact() const;

  DecodeProblem problem_;
  std::unique_ptr<DeviceBuffer> workspace;  // [workspace_bytes] bytes

 private:
  DecodeOp op_;
  DecodeArgs args_;
  std::vector<DeviceBuffer> inputs_;
  DeviceBuffer out_, lse_, rel_std_, out_rel_std_;
};

// The device against the oracle.
void check_device_decode(DecodeOp op, const AttentionCase& description);
// The same for a case that was changed by hand.
void check_device_decode(DecodeOp op, const AttentionCase& description, AttentionData& data);

}  // namespace rarefy::test
