// Merging on a GPU against the double-precision merge on the host.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "rarefy/attention/merge.h"
#include "tests/cuda/device_decode.h"

namespace rarefy::test {
namespace {

struct Case {
  int32_t head_dim, num_parts, num_rows;
  int32_t offset;  // of parts and results from an aligned address, in floats
};

// Against the merge on the CPU, which sums in double precision; rows of empty parts hold NaN.
TEST(CudaMerge, MatchesTheHostAndWorksInPlace) {
  const Case cases[] = {{1, 1, 37, 0},   {1, 7, 37, 0},   {64, 1, 37, 0},  {64, 2, 37, 0},  {64, 33, 37, 0},
                        {64, 7, 37, 1},  {66, 5, 37, 0},  {80, 7, 37, 0},  {100, 9, 37, 2}, {128, 17, 4097, 0},
                        {128, 70, 5, 0}, {256, 2, 37, 0}, {256, 9, 37, 0}, {256, 7, 37, 3}, {130, 20, 37, 0}};
  for (const auto& [head_dim, num_parts, num_rows, offset] : cases) {
    const std::string what =
        std::to_string(head_dim) + " dims, " + std::to_string(num_parts) + " parts, offset " + std::to_string(offset);
    RandomStream random(static_cast<uint64_t>(head_dim * 10 + num_parts));
    const auto values = static_cast<size_t>(num_parts * num_rows), row_size = static_cast<size_t>(head_dim);
    std::vector<float> lses(values), outs(static_cast<size_t>(offset) + values * row_size);
    for (float& value : outs) value = static_cast<float>(random.normal());
    for (size_t i = 0; i < values; ++i) {
      lses[i] = random.uniform() < 0.3 ? -INFINITY : static_cast<float>(30.0 * random.normal());
      if (std::isinf(lses[i])) std::fill_n(outs.begin() + offset + static_cast<int64_t>(i * row_size), row_size, NAN);
    }
    std::vector<float> out(static_cast<size_t>(num_rows) * row_size), lse(static_cast<size_t>(num_rows));
    MergeArgs args{num_parts, num_rows, outs.data() + offset, lses.data(), out.data(), lse.data()};
    ASSERT_TRUE(MergePlan::make(Device{}, {head_dim})->run(args).ok());

    const DeviceBuffer device_outs = DeviceBuffer::copy_of(outs.data(), outs.size() * sizeof(float));
    const DeviceBuffer device_lses = DeviceBuffer::copy_of(lses.data(), lses.size() * sizeof(float));
    const DeviceBuffer device_out((static_cast<size_t>(offset) + out.size()) * sizeof(float)),
        device_lse(lse.size() * sizeof(float));
    const Expected<MergePlan> plan = MergePlan::make(kGpu, {head_dim});
    ASSERT_TRUE(plan) << plan.status().to_string();
    args.part_out = device_outs.as<float>() + offset, args.part_lse = device_lses.as<float>();
    args.out = device_out.as<float>() + offset, args.lse = device_lse.as<float>();
    ASSERT_TRUE(plan->run(args).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    std::vector<float> got = device_out.values<float>();
    got.erase(got.begin(), got.begin() + offset);
    const std::vector<float> got_lse = device_lse.values<float>();
    // f32 throughout: differences of lse up to 300 round to 2^-24 of themselves, and so do num_parts sums; |out| stays below 5.
    for (size_t row = 0; row < lse.size(); ++row) {
      if (std::isinf(lse[row])) {
        EXPECT_EQ(got_lse[row], lse[row]) << what;
      } else {
        EXPECT_NEAR(got_lse[row], lse[row], 0x1p-22 * (std::abs(lse[row]) + 8.0)) << what;
      }
      for (size_t i = row * row_size; i < (row + 1) * row_size; ++i) {
        EXPECT_NEAR(got[i], out[i], 2.0 * 0x1p-24 * (300.0 + num_parts) * 5.0) << what;
      }
    }
    EXPECT_TRUE(device_out.intact() && device_lse.intact()) << what;
    args.out = device_outs.as<float>() + offset, args.lse = device_lses.as<float>();
    ASSERT_TRUE(plan->run(args).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    std::vector<float> in_place = device_outs.values<float>();
    in_place.erase(in_place.begin(), in_place.begin() + offset);
    in_place.resize(got.size());
    EXPECT_EQ(in_place, got) << what;
  }
}

// Few rows go to another kernel than many, and rows that are not aligned to a third one.
TEST(CudaMerge, BitsDoNotDependOnOtherRowsOrAlignment) {
  constexpr int32_t kMany = 3000, kFew = 3;
  for (const int32_t head_dim : {48, 64, 128, 256}) {
    for (const int32_t num_parts : {2, 3, 8, 41}) {
      RandomStream random(static_cast<uint64_t>(head_dim + num_parts));
      // Floats `offset` from an aligned address.
      const auto merge = [&](const std::vector<float>& outs, const std::vector<float>& lses, int32_t num_rows,
                             int32_t offset) {
        std::vector<float> moved(static_cast<size_t>(offset), 0.0f);
        moved.insert(moved.end(), outs.begin(), outs.end());
        const DeviceBuffer device_outs = DeviceBuffer::copy_of(moved.data(), moved.size() * sizeof(float));
        const DeviceBuffer device_lses = DeviceBuffer::copy_of(lses.data(), lses.size() * sizeof(float));
        const DeviceBuffer out(static_cast<size_t>(num_rows * head_dim) * sizeof(float));
        const DeviceBuffer lse(static_cast<size_t>(num_rows) * sizeof(float));
        EXPECT_TRUE(MergePlan::make(kGpu, {head_dim})
                        ->run({num_parts, num_rows, device_outs.as<float>() + offset, device_lses.as<float>(),
                               out.as<float>(), lse.as<float>()})
                        .ok());
        EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
        std::vector<float> results = out.values<float>();
        const std::vector<float> more = lse.values<float>();
        results.resize(static_cast<size_t>(kFew * head_dim));  // of the first rows
        results.insert(results.end(), more.begin(), more.begin() + kFew);
        return results;
      };
      std::vector<float> outs, lses, few_outs, few_lses;
      for (int32_t row = 0; row < num_parts * kMany; ++row) {
        lses.push_back(static_cast<float>(random.normal()));
        if (row % kMany < kFew) few_lses.push_back(lses.back());
        for (int32_t dim = 0; dim < head_dim; ++dim) {
          outs.push_back(static_cast<float>(random.normal()));
          if (row % kMany < kFew) few_outs.push_back(outs.back());
        }
      }
      const std::string what = std::to_string(head_dim) + " dims, " + std::to_string(num_parts) + " parts";
      const std::vector<float> many = merge(outs, lses, kMany, 0);
      EXPECT_EQ(merge(few_outs, few_lses, kFew, 0), many) << what;
      EXPECT_EQ(merge(few_outs, few_lses, kFew, 1), many) << what;
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
