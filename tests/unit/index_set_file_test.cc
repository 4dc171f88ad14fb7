// Index sets from files: safetensors, .npz and .npy, right and wrong.
#include "rarefy/engine/index_set_file.h"

#include <gtest/gtest.h>

#include "tests/support/model_folder.h"

namespace rarefy {
namespace {

using testing::safetensors_bytes;
using testing::TemporaryFolder;
using testing::TensorMap;

template <typename T>
std::string bytes_of(const std::vector<T>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(T)};
}

void put(std::string& bytes, uint64_t value, int32_t count) {
  for (int32_t i = 0; i < count; ++i) bytes += static_cast<char>(i < 8 ? value >> (8 * i) : 0);
}

// As NumPy writes it: the header ends with a newline and data starts at a multiple of 64.
std::string npy(const std::string& descr, const std::string& shape, const std::string& data,
                const std::string& order = "False") {
  std::string header = "{'descr': '";
  header.append(descr).append("', 'fortran_order': ").append(order).append(", 'shape': ").append(shape).append(", }");
  header.resize((10 + header.size() + 64) / 64 * 64 - 11, ' ');
  header += '\n';
  std::string file("\x93NUMPY\x01\x00", 8);
  put(file, header.size(), 2);
  return file + header + data;
}

// A zip archive; checksums are zero, which nobody here reads.
std::string npz(const std::vector<std::pair<std::string, std::string>>& members, uint64_t method = 0) {
  std::string file, directory;
  for (const auto& [name, data] : members) {
    const uint64_t at = file.size();
    put(file, 0x04034b50, 4);
    put(file, 20, 2), put(file, 0, 2), put(file, method, 2), put(file, 0, 8);
    put(file, data.size(), 4), put(file, data.size(), 4), put(file, name.size(), 2), put(file, 4, 2);
    file += name + "more" + data;
    put(directory, 0x02014b50, 4);
    put(directory, 20, 2), put(directory, 20, 2), put(directory, 0, 2), put(directory, method, 2), put(directory, 0, 8);
    put(directory, data.size(), 4), put(directory, data.size(), 4), put(directory, name.size(), 2);
    put(directory, 0, 12), put(directory, at, 4);
    directory += name;
  }
  const uint64_t at = file.size();
  file += directory;
  put(file, 0x06054b50, 4), put(file, 0, 4), put(file, members.size(), 2), put(file, members.size(), 2);
  put(file, directory.size(), 4), put(file, at, 4), put(file, 0, 2);
  return file;
}

const std::vector<int32_t> example_ids = {1, 5, 9, 0, 2, 0, 3, 4, 8, 7, 0, 0};       // [2, 2, 3] i32
const std::vector<int32_t> example_counts = {3, 2, 3, 1};                            // [2, 2] i32
const std::vector<float> example_weights = {0, 0.5f, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0};  // [2, 2, 3] f32

class IndexSetFileTest : public ::testing::Test {
 protected:
  auto load(const std::string& name, const std::string& bytes, const std::vector<int32_t>& layers) {
    folder_.write(name, bytes);
    return load_index_sets(folder_.path() / name, layers);
  }
  void expect_refused(const std::string& name, const std::string& bytes, const std::string& part) {
    const auto sets = load(name, bytes, {0});
    ASSERT_FALSE(sets) << "expected a refusal with '" << part << "'";
    EXPECT_NE(sets.status().message().find(part), std::string::npos) << sets.status().to_string();
    EXPECT_NE(sets.status().message().find(name), std::string::npos) << sets.status().to_string();
  }
  static void expect_example(const LayerIndexSet& one, bool with_weights) {
    ASSERT_EQ(one.set.batch(), 2);
    ASSERT_EQ(one.set.num_lists(), 2);
    const IndexSetView view = one.set.view();
    ASSERT_EQ(view.max_selected, 3);
    for (size_t row = 0; row < example_counts.size(); ++row) {
      ASSERT_EQ(view.counts[row], example_counts[row]);
      for (int32_t i = 0; i < example_counts[row]; ++i) {
        EXPECT_EQ(view.token_ids[row * 3 + i], example_ids[row * 3 + i]);
        EXPECT_EQ(view.log_weight[row * 3 + i], with_weights ? example_weights[row * 3 + i] : 0.0f);
      }
    }
  }

  TemporaryFolder folder_;
};

TEST_F(IndexSetFileTest, ReadsEveryForm) {
  const std::vector<int64_t> wide(example_ids.begin(), example_ids.end());
  const TensorMap tensors = {{"layers.3.token_ids", {"I32", {2, 2, 3}, bytes_of(example_ids)}},
                             {"layers.3.counts", {"I32", {2, 2}, bytes_of(example_counts)}},
                             {"layers.3.log_weight", {"F32", {2, 2, 3}, bytes_of(example_weights)}},
                             {"layers.5.token_ids", {"I64", {2, 2, 3}, bytes_of(wide)}},
                             {"layers.5.counts", {"I32", {2, 2}, bytes_of(example_counts)}}};
  auto sets = load("a.safetensors", safetensors_bytes(tensors), {3, 5});
  ASSERT_TRUE(sets) << sets.status().to_string();
  ASSERT_EQ(sets->size(), 2u);
  EXPECT_EQ((*sets)[1].layer, 5);
  expect_example((*sets)[0], true);
  expect_example((*sets)[1], false);

  sets = load("a.npz",
              npz({{"token_ids.npy", npy("<i8", "(2, 2, 3)", bytes_of(wide))},
                   {"counts.npy", npy("<i4", "(2, 2)", bytes_of(example_counts))},
                   {"log_weight.npy", npy("<f4", "(2, 2, 3)", bytes_of(example_weights))}}),
              {7});
  ASSERT_TRUE(sets) << sets.status().to_string();
  expect_example((*sets)[0], true);

  const std::vector<int32_t> full = {1, 2, 3, 4};
  sets = load("a.npy", npy("<i4", "(1, 2, 2)", bytes_of(full)), {7});
  ASSERT_TRUE(sets) << sets.status().to_string();
  EXPECT_EQ((*sets)[0].set.view().counts[1], 2);
  EXPECT_EQ((*sets)[0].set.view().token_ids[3], 4);
}

TEST_F(IndexSetFileTest, WritesWhatItReads) {
  const TensorMap tensors = {{"token_ids", {"I32", {2, 2, 3}, bytes_of(example_ids)}},
                             {"counts", {"I32", {2, 2}, bytes_of(example_counts)}},
                             {"log_weight", {"F32", {2, 2, 3}, bytes_of(example_weights)}}};
  auto sets = load("a.safetensors", safetensors_bytes(tensors), {4});
  ASSERT_TRUE(sets) << sets.status().to_string();
  std::string bytes;
  const auto write = [&](std::span<const std::byte> part) {
    bytes.append(reinterpret_cast<const char*>(part.data()), part.size());
    return Status();
  };
  ASSERT_TRUE(save_index_sets(*sets, write).ok());
  sets = load("b.safetensors", bytes, {4});
  ASSERT_TRUE(sets) << sets.status().to_string();
  expect_example((*sets)[0], true);
  EXPECT_EQ(save_index_sets(*sets, [](std::span<const std::byte>) { return Status::io_error("full"); }).message(), "full");
}

TEST_F(IndexSetFileTest, RefusesBadFiles) {
  const std::string ids = bytes_of(example_ids);
  expect_refused("a.txt", "x", "expected a file that ends in .safetensors, .npz or .npy");
  expect_refused("a.safetensors", safetensors_bytes(TensorMap{{"ids", {"I32", {2, 2, 3}, ids}}}),
                 "'layers.0.token_ids' or 'token_ids'");
  expect_refused("a.safetensors", safetensors_bytes(TensorMap{{"token_ids", {"I32", {4, 3}, ids}}}),
                 "[num_steps, num_lists, max_selected]");
  expect_refused("a.safetensors", safetensors_bytes(TensorMap{{"token_ids", {"F32", {2, 2, 3}, ids}}}), "integers");
  expect_refused("a.safetensors",
                 safetensors_bytes(
                     TensorMap{{"token_ids", {"I32", {2, 2, 3}, ids}}, {"counts", {"I32", {4}, bytes_of(example_counts)}}}),
                 "expected [2, 2] as in token_ids, got I32[4]");
  expect_refused(
      "a.safetensors",
      safetensors_bytes(TensorMap{{"token_ids", {"I32", {2, 2, 3}, ids}}, {"log_weight", {"I32", {2, 2, 3}, ids}}}),
      "expected f32 of the shape of token_ids");
  const std::vector<int64_t> far = {1, 2, int64_t{1} << 40};
  expect_refused("a.npy", npy("<i8", "(1, 1, 3)", bytes_of(far)), "1099511627776");
  expect_refused("a.npy", npy("<i4", "(2, 2, 3)", ids, "True"), "C order");
  expect_refused("a.npy", npy(">i4", "(2, 2, 3)", ids), "little-endian");
  expect_refused("a.npy", npy("<i4", "(2, 2, 4)", ids), "expected 64 bytes for I32[2, 2, 4], got 48");
  expect_refused("a.npy", npy("<i4", "(2, -2, 3)", ids), "shape");
  expect_refused("a.npy", npy("<i4", "(9223372036854775807, 9223372036854775807, 3)", ids), "fits the file");
  expect_refused("a.npy", "not an array at all", "NumPy");
  const std::string array = npy("<i4", "(2, 2, 3)", ids);
  expect_refused("a.npy", array.substr(0, 30), "truncated");
  const std::string archive = npz({{"token_ids.npy", array}});
  expect_refused("a.npz", archive.substr(0, archive.size() - 30), "zip archive");
  expect_refused("a.npz", archive.substr(40), "zip archive");
  expect_refused("a.npz", npz({{"token_ids.npy", array}}, 8), "np.savez");
  expect_refused("a.npz", npz({{"token_ids.npy", array.substr(0, 100)}}), "token_ids.npy");
}

}  // namespace
}  // namespace rarefy
