// Merging on a GPU against the double-precision merge on the host.
#include <gtest/gtest.h>

#include <cmath>

#include "rarefy/attention/merge.h"
#include "tests/cuda/device_decode.h"

namespace rarefy::test {
namespace {

TEST(CudaMerge, MatchesTheHostAndWorksInPlace) {
  for (int32_t head_dim : {1, 64, 80, 256}) {
    for (int32_t num_parts : {1, 2, 7}) {
      constexpr int32_t kRows = 37;
      RandomStream random(static_cast<uint64_t>(head_dim * 10 + num_parts));
      const auto values = static_cast<size_t>(num_parts * kRows);
      std::vector<float> outs(values * static_cast<size_t>(head_dim)), lses(values);
      for (float& value : outs) value = static_cast<float>(random.normal());
      for (float& value : lses) value = random.uniform() < 0.3 ? -INFINITY : static_cast<float>(30.0 * random.normal());
      std::vector<float> out(static_cast<size_t>(kRows * head_dim)), lse(kRows);
      MergeArgs args{num_parts, kRows, outs.data(), lses.data(), out.data(), lse.data()};
      ASSERT_TRUE(MergePlan::make(Device{}, {head_dim})->run(args).ok());

      const DeviceBuffer device_outs = DeviceBuffer::copy_of(outs.data(), outs.size() * sizeof(float));
      const DeviceBuffer device_lses = DeviceBuffer::copy_of(lses.data(), lses.size() * sizeof(float));
      const DeviceBuffer device_out(out.size() * sizeof(float)), device_lse(lse.size() * sizeof(float));
      const Expected<MergePlan> plan = MergePlan::make(kGpu, {head_dim});
      ASSERT_TRUE(plan) << plan.status().to_string();
      args.part_out = device_outs.as<float>(), args.part_lse = device_lses.as<float>();
      args.out = device_out.as<float>(), args.lse = device_lse.as<float>();
      ASSERT_TRUE(plan->run(args).ok());
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      const std::vector<float> got = device_out.values<float>(), got_lse = device_lse.values<float>();
      // f32 throughout: differences of lse up to 120 round to 2^-24 of themselves, and so do num_parts sums; |out| stays below 5.
      for (size_t row = 0; row < lse.size(); ++row) {
        const double lse_scale = std::isinf(lse[row]) ? 0.0 : std::abs(lse[row]);
        if (std::isinf(lse[row])) {
          EXPECT_EQ(got_lse[row], lse[row]);
        } else {
          EXPECT_NEAR(got_lse[row], lse[row], 0x1p-22 * (lse_scale + 8.0));
        }
        for (int32_t d = 0; d < head_dim; ++d) {
          const size_t i = row * static_cast<size_t>(head_dim) + static_cast<size_t>(d);
          EXPECT_NEAR(got[i], out[i], 2.0 * 0x1p-24 * (120.0 + num_parts) * 5.0) << head_dim << " " << num_parts;
        }
      }
      EXPECT_TRUE(device_out.intact() && device_lse.intact());
      args.out = device_outs.as<float>(), args.lse = device_lses.as<float>();
      ASSERT_TRUE(plan->run(args).ok());
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      std::vector<float> in_place = device_outs.values<float>();
      in_place.resize(got.size());
      EXPECT_EQ(in_place, got);
    }
  }
}

TEST(CudaMerge, RefusesHostMemory) {
  float value = 0.0f;
  const Expected<MergePlan> plan = MergePlan::make(kGpu, {16});
  ASSERT_TRUE(plan);
  const Status status = plan->run({1, 1, &value, &value, &value, nullptr});
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.message().find("host memory"), std::string::npos);
}

}  // namespace
}  // namespace rarefy::test
