// One head's random keys under one selector: trained, encoded, prepared and surveyed as a cache and a list would do it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "rarefy/select/registry.h"

namespace rarefy::test {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Random keys of one head as a cache stores them, encoded block by block, with queries.
struct SelectorCase {
  SelectorCase(const std::string& name, int32_t head_dim, int32_t group, int32_t num_tokens, DType dtype, uint32_t seed,
               float outliers = 0.7f)
      : shape{1, 1, group, head_dim, dtype}, num_tokens(num_tokens) {
    selector = *make_selector(name, shape);
    block_tokens = selector->block_tokens();
    num_blocks = (num_tokens + block_tokens - 1) / block_tokens;
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> spread(static_cast<size_t>(head_dim));  // outlier channels, as in real keys
    for (float& factor : spread) factor = std::exp(outliers * normal(random));
    const size_t rows = static_cast<size_t>(num_blocks) * block_tokens;
    keys.assign(rows * head_dim, kNan);  // what lies behind the last token must not matter
    stored.assign(rows * head_dim * 4, std::byte{0xff});
    for (int64_t i = 0; i < int64_t{num_tokens} * head_dim; ++i) {
      store_from_float(stored.data(), dtype, i, spread[i % head_dim] * normal(random));
      keys[i] = load_as_float(stored.data(), dtype, i);
    }
    for (int32_t i = 0; i < group * head_dim; ++i)
      q.push_back(2.0f * normal(random) / std::sqrt(static_cast<float>(head_dim)));
    values.assign(keys.size(), kNan);
    for (int64_t i = 0; i < int64_t{num_tokens} * head_dim; ++i) values[i] = normal(random);
    trained.reserve(std::max<size_t>(1, static_cast<size_t>(selector->trained_bytes())));
    if (selector->trained_bytes() > 0) {
      std::vector<float> first;
      for (int32_t i = 0; i < selector->training_tokens() * head_dim; ++i)
        first.push_back(spread[i % head_dim] * normal(random));
      EXPECT_TRUE(selector->train({0, 0}, first.data(), selector->training_tokens(), trained.data()).ok());
    }
    index.reserve(std::max<size_t>(1, static_cast<size_t>(num_blocks * selector->block_bytes())));
    std::memset(index.data(), 0x5a, index.capacity());
    for (int32_t block = 0; block < num_blocks; ++block) selector->encode(head(), block_keys(block, 0), entry(block));
    state.reserve(selector->query_state_bytes());
    selector->prepare(head(), q.data(), state.data());
    run_survey();
  }

  BlockKeys block_keys(int32_t block, int32_t first_new) const {
    return {keys.data() + int64_t{block} * block_tokens * shape.head_dim,
            std::min(block_tokens, num_tokens - block * block_tokens), first_new,
            values.data() + int64_t{block} * block_tokens * shape.head_dim};
  }
  HeadId head() const { return {0, 0, selector->trained_bytes() > 0 ? trained.data() : nullptr}; }
  std::byte* entry(int32_t block) const { return index.data() + block * selector->block_bytes(); }

  // Pointers to some blocks.
  struct Pointers {
    std::vector<const std::byte*> entries;
    std::vector<const void*> rows;
  };
  ScoreBlocks blocks(const std::vector<int32_t>& order, Pointers& pointers) const {
    const auto element_bytes = static_cast<int64_t>(size_of(shape.kv_dtype));
    for (int32_t block : order) {
      pointers.entries.push_back(entry(block));
      pointers.rows.push_back(stored.data() + int64_t{block} * block_tokens * shape.head_dim * element_bytes);
    }
    ScoreBlocks result;
    result.head = head();
    result.num_blocks = static_cast<int32_t>(order.size());
    result.entries = pointers.entries.data();
    result.keys = pointers.rows.data();
    result.key_token_stride = shape.head_dim;
    return result;
  }
  std::vector<int32_t> all_blocks() const {
    std::vector<int32_t> order(static_cast<size_t>(num_blocks));
    std::iota(order.begin(), order.end(), 0);
    return order;
  }

  // As a list does it, with every other complete block as the sample.
  void run_survey() {
    const int64_t num_values = selector->survey_values();
    if (num_values == 0) return;
    Pointers all, some;
    survey.assign(static_cast<size_t>(num_values * num_blocks), kNan);
    selector->survey(state.data(), blocks(all_blocks(), all), survey.data());
    surveyed = survey;
    Survey result;
    result.values = survey.data();
    result.num_blocks = num_blocks;
    result.num_tokens = num_tokens;
    std::vector<int32_t> sample;
    for (int32_t block = 0; block + 1 < num_blocks; block += 2) sample.push_back(block);
    result.sample = blocks(sample, some);
    result.sample.survey = survey.data();
    result.sample.survey_stride = 2 * num_values;
    selector->settle(state.data(), result);
  }

  // Scores of all tokens, [group][num_tokens], blocks passed in the given order; checks the bytes around the output.
  std::vector<std::vector<float>> scores(const std::vector<int32_t>& order, bool bounds = false) const {
    const int64_t used = static_cast<int64_t>(order.size()) * block_tokens;
    const int64_t stride = used + 7;
    std::vector<float> out(static_cast<size_t>(stride * shape.group), -12345.0f);
    Pointers pointers;
    ScoreBlocks some = blocks(order, pointers);
    std::vector<float> numbers;  // [num_blocks, survey_values] f32; of these blocks
    for (int32_t block : order) {
      const auto first = survey.begin() + int64_t{block} * selector->survey_values();
      numbers.insert(numbers.end(), first, first + selector->survey_values());
    }
    some.survey = numbers.data();
    some.survey_stride = selector->survey_values();
    if (bounds) {
      selector->bound(state.data(), some, out.data(), stride);
    } else {
      selector->score(state.data(), some, out.data(), stride);
    }
    std::vector<std::vector<float>> result(shape.group, std::vector<float>(static_cast<size_t>(num_blocks) * block_tokens));
    for (int32_t query = 0; query < shape.group; ++query) {
      for (int64_t i = used; i < stride; ++i) EXPECT_EQ(out[query * stride + i], -12345.0f) << "guard of query " << query;
      for (size_t i = 0; i < order.size(); ++i) {
        std::copy_n(out.begin() + query * stride + static_cast<int64_t>(i) * block_tokens, block_tokens,
                    result[query].begin() + int64_t{order[i]} * block_tokens);
      }
    }
    return result;
  }
  std::vector<std::vector<float>> scores() const { return scores(all_blocks()); }
  std::vector<std::vector<float>> bounds() const { return scores(all_blocks(), true); }

  SelectorShape shape;
  int32_t num_tokens, block_tokens, num_blocks;
  std::shared_ptr<const Selector> selector;
  std::vector<float> keys;        // [num_blocks, block_tokens, head_dim] f32; NaN past the last token
  std::vector<std::byte> stored;  // [num_blocks, block_tokens, head_dim] kv_dtype
  std::vector<float> values;      // [num_blocks, block_tokens, head_dim] f32; NaN past the last token
  std::vector<float> q;           // [group, head_dim] f32
  std::vector<float> survey;      // [num_blocks, survey_values] f32; settled
  std::vector<float> surveyed;    // [num_blocks, survey_values] f32; before settle()
  AlignedBuffer trained, index, state;
};

}  // namespace rarefy::test
