#include "tests/cuda/device_decode.h"

#include <algorithm>

namespace rarefy::test {

DeviceBuffer::DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
  void* pointer = nullptr;
  EXPECT_EQ(cudaMalloc(&pointer, bytes + 2 * kGuard), cudaSuccess);
  base_.reset(pointer);
  EXPECT_EQ(cudaMemset(pointer, 0xff, bytes + 2 * kGuard), cudaSuccess);
}

DeviceBuffer DeviceBuffer::copy_of(const void* host, std::size_t bytes) {
  DeviceBuffer buffer(bytes);
  EXPECT_EQ(cudaMemcpy(buffer.data(), host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
  return buffer;
}

void DeviceBuffer::poison() { EXPECT_EQ(cudaMemset(data(), 0xff, bytes_), cudaSuccess); }

bool DeviceBuffer::intact() const {
  std::vector<unsigned char> all(bytes_ + 2 * kGuard);
  EXPECT_EQ(cudaMemcpy(all.data(), base_.get(), all.size(), cudaMemcpyDeviceToHost), cudaSuccess);
  const auto good = [](unsigned char byte) { return byte == 0xff; };
  return std::all_of(all.begin(), all.begin() + kGuard, good) && std::all_of(all.end() - kGuard, all.end(), good);
}

std::vector<unsigned char> DeviceBuffer::bytes() const {
  std::vector<unsigned char> result(bytes_);
  EXPECT_EQ(cudaMemcpy(result.data(), data(), bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
  return result;
}

DeviceDecode::DeviceDecode(DecodeOp op, AttentionData& data)
    : problem_(data.decode_problem()),
      op_(op),
      args_(data.decode_args()),
      out_(static_cast<size_t>(data.num_rows() * problem_.head_dim) * size_of(problem_.out_dtype)),
      lse_(static_cast<size_t>(data.num_rows()) * sizeof(float)),
      rel_std_(lse_.size()),
      out_rel_std_(lse_.size()) {
  inputs_.reserve(12);
  const auto upload = [&](auto& buffer) -> decltype(buffer.data()) {
    if (buffer.size() == 0) return nullptr;
    inputs_.push_back(DeviceBuffer::copy_of(buffer.data(), buffer.size() * sizeof(buffer[0])));
    return static_cast<decltype(buffer.data())>(inputs_.back().data());
  };
  args_.q = upload(data.q);
  args_.kv.keys = upload(data.keys);
  args_.kv.values = upload(data.values);
  args_.kv.page_table = upload(data.page_table);
  args_.kv.kv_lens = upload(data.lens);
  if (args_.kv.key_scales != nullptr) args_.kv.key_scales = upload(data.key_scales);
  if (args_.kv.value_scales != nullptr) args_.kv.value_scales = upload(data.value_scales);
  if (args_.sink_logits != nullptr) args_.sink_logits = upload(data.sinks);
  args_.out = out_.data();
  args_.lse = lse_.as<float>();
  if (op == DecodeOp::dense) return;
  args_.index.counts = upload(data.counts);
  args_.index.token_ids = upload(data.token_ids);
  if (args_.index.log_weight != nullptr) args_.index.log_weight = upload(data.log_weight);
  args_.rel_std = rel_std_.as<float>();
  args_.out_rel_std = out_rel_std_.as<float>();
}

void DeviceDecode::reserve_workspace(const DecodePlan& plan) {
  workspace = std::make_unique<DeviceBuffer>(plan.workspace_bytes());
  const Status status = plan.prepare_workspace(workspace->data(), workspace->size());
  EXPECT_TRUE(status.ok()) << status.to_string();
}

DecodeArgs DeviceDecode::args() {
  DecodeArgs args = args_;
  if (workspace != nullptr) {
    args.workspace = workspace->data();
    args.workspace_bytes = workspace->size();
  }
  return args;
}

void DeviceDecode::poison_outputs() {
  out_.poison();
  lse_.poison();
  rel_std_.poison();
  out_rel_std_.poison();
}

bool DeviceDecode::guards_intact() const {
  const auto intact = [](const DeviceBuffer& buffer) { return buffer.intact(); };
  return intact(out_) && intact(lse_) && intact(rel_std_) && intact(out_rel_std_) && (!workspace || intact(*workspace)) &&
         std::all_of(inputs_.begin(), inputs_.end(), intact);
}

DecodeOutputs DeviceDecode::outputs() const {
  DecodeOutputs outputs;
  const std::vector<unsigned char> raw = out_.bytes();
  outputs.out.resize(raw.size() / size_of(problem_.out_dtype));
  for (size_t i = 0; i < outputs.out.size(); ++i) {
    outputs.out[i] = load_as_float(raw.data(), problem_.out_dtype, static_cast<int64_t>(i));
  }
  outputs.lse = lse_.values<float>();
  if (op_ == DecodeOp::sparse) {
    outputs.rel_std = rel_std_.values<float>();
    outputs.out_rel_std = out_rel_std_.values<float>();
  }
  return outputs;
}

DecodeOutputs DeviceDecode::run() {
  const Expected<DecodePlan> made = plan();
  EXPECT_TRUE(made) << made.status().to_string();
  if (!made) return {};
  reserve_workspace(*made);
  poison_outputs();
  Status status = made->run(args());
  EXPECT_TRUE(status.ok()) << status.to_string();
  status = made->check(workspace->data());
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_TRUE(guards_intact());
  return outputs();
}

void check_device_decode(DecodeOp op, const AttentionCase& description, AttentionData& data) {
  SCOPED_TRACE(description.to_string());
  const DecodeProblem problem = data.decode_problem();
  const DecodeOutputs got = DeviceDecode(op, data).run();
  const ref::AttentionResult expected = ref::decode_attention(op, problem, data.decode_args());
  Got compared{got.out, got.lse.data(), nullptr, nullptr};
  if (op == DecodeOp::sparse) {
    compared.rel_std = got.rel_std.data();
    compared.out_rel_std = got.out_rel_std.data();
  }
  const int32_t longest = *std::max_element(description.kv_lens.begin(), description.kv_lens.end());
  EXPECT_TRUE(matches_oracle(compared, expected, problem.head_dim, problem.out_dtype, longest,
                             weight_rounding("cuda", problem.q_dtype), problem.q_dtype == DType::f16 ? 0x1p-36 : 0.0));
}

void check_device_decode(DecodeOp op, const AttentionCase& description) {
  AttentionData data(description, op);
  check_device_decode(op, description, data);
}

}  // namespace rarefy::test
