#include "select/channel_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "cpu/select/nibble_scores.h"
#include "select/builtin_selectors.h"
#include "select/k_means.h"
#include "select/nibble_state.h"

namespace rarefy {
namespace {

// Best uniform steps for a normal distribution of standard deviation 1 (Max, 1960).
constexpr double kStep4Bits = 0.3352, kStep2Bits = 0.9957;

}  // namespace

ChannelCodeSelector::ChannelCodeSelector(const SelectorShape& shape, int32_t num_channels, int32_t bits, ChannelFile file)
    : shape_(shape),
      num_channels_(num_channels),
      bits_(bits),
      num_lanes_(cpu::nibble_lanes(num_channels * bits / 4)),
      file_(std::move(file)) {}

std::string ChannelCodeSelector::name() const {
  return "ds" + std::to_string(num_channels_) + (bits_ == 2 ? ":2bit" : "") +
         (file_.path.empty() ? "" : ":channels=" + file_.path);
}

int64_t ChannelCodeSelector::block_bytes() const { return cpu::nibble_block_bytes(num_lanes_, false); }

TrainedChannels ChannelCodeSelector::trained_channels(const std::byte* trained) const {
  const auto* means = reinterpret_cast<const float*>(trained) + num_channels_;  // [num_channels] f32
  return {reinterpret_cast<const int32_t*>(trained), means, means + num_channels_};
}

Status ChannelCodeSelector::train(HeadId head, const float* keys, int32_t num_tokens, std::byte* trained) const {
  const int32_t head_dim = shape_.head_dim, num_points = num_tokens - kSkippedTokens;
  RAREFY_RETURN_IF_ERROR(check_finite(keys, int64_t{num_tokens} * head_dim, name(), head));
  std::vector<double> means(static_cast<size_t>(head_dim)), variances(means.size());  // [head_dim] f64
  for (int32_t dim = 0; dim < head_dim; ++dim) {
    const float* column = keys + int64_t{kSkippedTokens} * head_dim + dim;  // [num_points] f32; head_dim apart
    double sum = 0.0, square = 0.0;
    for (int32_t i = 0; i < num_points; ++i) sum += double{column[int64_t{i} * head_dim]};
    for (int32_t i = 0; i < num_points; ++i)
      square += std::pow(double{column[int64_t{i} * head_dim]} - sum / num_points, 2);
    means[static_cast<size_t>(dim)] = sum / num_points;
    variances[static_cast<size_t>(dim)] = square / num_points;
  }
  std::vector<int32_t> ids;  // [num_channels] i32
  if (file_.path.empty()) {
    ids.resize(static_cast<size_t>(head_dim));
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
      return variances[static_cast<size_t>(a)] > variances[static_cast<size_t>(b)];
    });
    ids.resize(static_cast<size_t>(num_channels_));
  } else {
    const auto& heads = file_.channels[static_cast<size_t>(head.layer)];
    if (heads.empty()) {
      return Status::invalid_argument("selector: channels=" + file_.path + ": there are no channels for layer " +
                                      std::to_string(head.layer) + ", which has full attention; calibrate on this model");
    }
    ids = heads[static_cast<size_t>(head.kv_head)];
  }
  auto* to_ids = reinterpret_cast<int32_t*>(trained);                  // [num_channels] i32
  auto* to_means = reinterpret_cast<float*>(trained) + num_channels_;  // [num_channels] f32
  for (int32_t i = 0; i < num_channels_; ++i) {
    const auto dim = static_cast<size_t>(ids[static_cast<size_t>(i)]);
    to_ids[i] = ids[static_cast<size_t>(i)];
    to_means[i] = static_cast<float>(means[dim]);
    to_means[num_channels_ + i] = static_cast<float>((bits_ == 4 ? kStep4Bits : kStep2Bits) * std::sqrt(variances[dim]));
  }
  return {};
}

int32_t ChannelCodeSelector::code(const std::byte* entry, int32_t token, int32_t index) const {
  const int32_t per_lane = 8 / bits_;
  const auto byte = static_cast<uint32_t>(entry[cpu::nibble_code_offset(index / per_lane, token)]);
  return static_cast<int32_t>((byte >> (index % per_lane * bits_)) & ((1u << bits_) - 1u));
}

void ChannelCodeSelector::encode(HeadId head, const BlockKeys& block, std::byte* entry) const {
  const TrainedChannels channels = trained_channels(head.trained);
  const int32_t per_lane = 8 / bits_;
  const auto last = static_cast<float>(num_levels() - 1);
  for (int32_t token = block.first_new; token < block.num_tokens; ++token) {
    const float* key = block.keys + int64_t{token} * shape_.head_dim;  // [head_dim] f32
    for (int32_t lane = 0; lane < num_lanes_; ++lane) {
      uint32_t byte = 0;
      for (int32_t j = 0; j < per_lane && lane * per_lane + j < num_channels_; ++j) {
        const int32_t i = lane * per_lane + j;
        const float position = (key[channels.ids[i]] - channels.means[i]) / channels.steps[i] + 0.5f * last;
        // 0 for what is not a number: a channel without variance has the step 0.
        const auto code = static_cast<uint32_t>(position > 0.0f ? std::min(std::nearbyint(position), last) : 0.0f);
        byte |= code << (j * bits_);
      }
      entry[cpu::nibble_code_offset(lane, token)] = static_cast<std::byte>(byte);
    }
  }
}

size_t ChannelCodeSelector::query_state_bytes() const { return NibbleState::bytes(shape_.group, num_lanes_); }

float ChannelCodeSelector::table_step(const std::byte* state, int32_t query) const {
  return NibbleState::step(state, query);
}

void ChannelCodeSelector::prepare(HeadId head, const float* q, std::byte* state) const {
  const TrainedChannels channels = trained_channels(head.trained);
  const int32_t per_group = 4 / bits_;
  const float middle = 0.5f * static_cast<float>(num_levels() - 1);
  std::vector<float> values(static_cast<size_t>(num_groups()) * cpu::kNibblePatterns);  // [num_groups, 16] f32
  for (int32_t query = 0; query < shape_.group; ++query) {
    const float* row = q + int64_t{query} * shape_.head_dim;  // [head_dim] f32
    for (int32_t group = 0; group < num_groups(); ++group) {
      for (uint32_t pattern = 0; pattern < cpu::kNibblePatterns; ++pattern) {
        float sum = 0.0f;
        for (int32_t j = 0; j < per_group; ++j) {
          const int32_t i = group * per_group + j;
          const auto code = static_cast<float>((pattern >> (j * bits_)) & static_cast<uint32_t>(num_levels() - 1));
          sum += row[channels.ids[i]] * (channels.means[i] + channels.steps[i] * (code - middle));
        }
        values[static_cast<size_t>(group) * cpu::kNibblePatterns + pattern] = sum;
      }
    }
    NibbleState::set(state, query, values.data(), num_groups(), num_lanes_);
  }
}

void ChannelCodeSelector::score(const std::byte* state, const ScoreBlocks& blocks, float* scores,
                                int64_t score_stride) const {
  NibbleState::score(state, shape_.group, num_lanes_, blocks, scores, score_stride);
}

namespace {

Expected<std::shared_ptr<const Selector>> make_channel_codes(const SelectorShape& shape, int32_t num_channels,
                                                             std::string_view options) {
  const std::string name = "ds" + std::to_string(num_channels);
  if (shape.head_dim < num_channels) {
    return Status::unsupported("selector: " + name + " keeps " + std::to_string(num_channels) +
                               " channels; head_dim must be at least that, got " + std::to_string(shape.head_dim));
  }
  int32_t bits = 4;
  ChannelFile file;
  constexpr std::string_view kChannels = "channels=";
  for (std::string_view rest = options; !rest.empty();) {
    const std::string_view option = take_option(rest);
    if (option == "2bit" || option == "4bit") {
      bits = option == "2bit" ? 2 : 4;
    } else if (option.starts_with(kChannels) && option.size() > kChannels.size()) {
      RAREFY_ASSIGN_OR_RETURN(file, ChannelFile::load(std::string(option.substr(kChannels.size())), shape, num_channels));
    } else {
      return Status::invalid_argument("selector: " + name +
                                      " takes 4bit or 2bit after the colon, and :channels=PATH, got '" +
                                      std::string(options) + "'");
    }
  }
  return std::make_shared<const ChannelCodeSelector>(shape, num_channels, bits, std::move(file));
}

}  // namespace

Expected<std::shared_ptr<const Selector>> make_ds16_selector(const SelectorShape& shape, std::string_view options) {
  return make_channel_codes(shape, 16, options);
}

Expected<std::shared_ptr<const Selector>> make_ds32_selector(const SelectorShape& shape, std::string_view options) {
  return make_channel_codes(shape, 32, options);
}

}  // namespace rarefy
