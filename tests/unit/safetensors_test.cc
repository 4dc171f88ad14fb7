#include "model/safetensors.h"

#include <gtest/gtest.h>

#include <random>
#include <span>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "rarefy/model/safetensors_header.h"
#include "tests/support/model_folder.h"

namespace rarefy {
namespace {

using model::Checkpoint;
using model::parse_safetensors;
using testing::safetensors_bytes;
using testing::TemporaryFolder;
using testing::TensorMap;

Expected<model::SafetensorsHeader> parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)));
}

Status parse_header(const std::string& header, const std::string& data) {
  auto parsed = parse(safetensors_bytes(header, data));
  return parsed ? Status() : parsed.status();
}

// The failure has this code and names all of these parts.
void expect_failure(const Status& status, StatusCode code, std::initializer_list<std::string_view> parts) {
  EXPECT_EQ(status.code(), code) << status.to_string();
  for (const std::string_view part : parts) {
    EXPECT_NE(status.message().find(part), std::string::npos) << "no '" << part << "' in: " << status.to_string();
  }
}

const TensorMap two_tensors = {{"a", {"F32", {2, 2}, std::string(16, 'a')}}, {"b", {"BF16", {3}, std::string(6, 'b')}}};

TEST(Safetensors, ReadsWhatIsThere) {
  const std::string file = safetensors_bytes(two_tensors);
  const auto parsed = parse(file);
  ASSERT_TRUE(parsed) << parsed.status().to_string();
  ASSERT_EQ(parsed->tensors.size(), 2u);
  const model::StoredTensor& b = parsed->tensors.at("b");
  EXPECT_EQ(b.dtype, DType::bf16);
  EXPECT_EQ(b.shape, std::vector<int64_t>{3});
  EXPECT_EQ(b.to_string(), "BF16[3]");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(b.data), b.size_bytes), "bbbbbb");
  EXPECT_EQ(reinterpret_cast<const char*>(b.data), file.data() + file.size() - 6);  // a view, not a copy
}

TEST(Safetensors, MetadataScalarsAndEmptyTensors) {
  const auto parsed =
      parse(safetensors_bytes(R"({"__metadata__":{"format":"pt"},"scalar":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                              R"("empty":{"dtype":"F16","shape":[0,18446744073709551],"data_offsets":[8,8]},)"
                              R"("first_empty":{"dtype":"BOOL","shape":[0],"data_offsets":[0,0]}})",
                              "12345678"));
  ASSERT_TRUE(parsed) << parsed.status().to_string();
  EXPECT_EQ(parsed->metadata.at("format"), "pt");
  EXPECT_EQ(parsed->tensors.at("scalar").dtype, std::nullopt);
  EXPECT_EQ(parsed->tensors.at("scalar").dtype_name, "I64");
  EXPECT_EQ(parsed->tensors.at("empty").size_bytes, 0u);
}

TEST(Safetensors, EveryTypeOfTheFormat) {
  for (const auto& [name, size] : std::vector<std::pair<std::string, int>>{{"BOOL", 1},
                                                                           {"U8", 1},
                                                                           {"I8", 1},
                                                                           {"F8_E4M3", 1},
                                                                           {"F8_E5M2", 1},
                                                                           {"F8_E8M0", 1},
                                                                           {"I16", 2},
                                                                           {"U16", 2},
                                                                           {"F16", 2},
                                                                           {"BF16", 2},
                                                                           {"I32", 4},
                                                                           {"U32", 4},
                                                                           {"F32", 4},
                                                                           {"F64", 8},
                                                                           {"I64", 8},
                                                                           {"U64", 8},
                                                                           {"C64", 8}}) {
    const auto parsed = parse(safetensors_bytes(TensorMap{{"x", {name, {3}, std::string(3 * size, 'x')}}}));
    EXPECT_TRUE(parsed) << name << ": " << parsed.status().to_string();
    EXPECT_FALSE(parse(safetensors_bytes(TensorMap{{"x", {name, {3}, std::string(3 * size + 1, 'x')}}}))) << name;
  }
}

TEST(Safetensors, TruncatedAnywhere) {
  const std::string file = safetensors_bytes(two_tensors);
  for (size_t size = 0; size < file.size(); ++size) {
    const std::string shorter =
        file.substr(0, size);  // its own allocation, so that a sanitizer sees every read past the end
    const auto parsed = parse(shorter);
    ASSERT_FALSE(parsed) << size;
    EXPECT_EQ(parsed.status().code(), StatusCode::data_loss) << parsed.status().to_string();
  }
}

TEST(Safetensors, EveryByteDamaged) {
  const std::string file = safetensors_bytes(two_tensors);
  std::mt19937 random(20261124);
  for (size_t at = 0; at < file.size(); ++at) {
    for (int i = 0; i < 8; ++i) {
      std::string damaged = file;
      damaged[at] = static_cast<char>(random());
      const auto parsed = parse(damaged);  // must not crash; what is accepted must lie inside
      if (!parsed) continue;
      for (const auto& [name, tensor] : parsed->tensors) {
        EXPECT_GE(reinterpret_cast<const char*>(tensor.data), damaged.data());
        EXPECT_LE(reinterpret_cast<const char*>(tensor.data) + tensor.size_bytes, damaged.data() + damaged.size());
      }
    }
  }
}

TEST(Safetensors, HeaderLengths) {
  expect_failure(parse("abc").status(), StatusCode::data_loss, {"8-byte length", "3 bytes"});
  expect_failure(parse(std::string(8, '\xff')).status(), StatusCode::data_loss, {"at most 100000000"});
  expect_failure(parse(std::string("\x10\0\0\0\0\0\0\0{}", 10)).status(), StatusCode::data_loss,
                 {"header of 16 bytes", "truncated"});
  expect_failure(parse_header("", ""), StatusCode::data_loss, {"'{'"});
  expect_failure(parse_header("[]", ""), StatusCode::data_loss, {"'{'"});
  EXPECT_TRUE(parse_header("{}", "").ok());
}

TEST(Safetensors, WrongHeaders) {
  const auto tensor = [](const std::string& fields) { return "{\"x\":{" + fields + "}}"; };
  struct Case {
    std::string header;
    StatusCode code;
    std::string_view part;
  };
  for (
      const Case& c : std::vector<Case>{
          {"{\"x\":", StatusCode::data_loss, "JSON"},
          {"{\"\xff\":1}", StatusCode::data_loss, "JSON"},
          {std::string(300, '[').insert(0, "{\"x\":"), StatusCode::data_loss, "levels"},
          {"{\"x\":1}", StatusCode::data_loss, "expected an object"},
          {tensor(R"("dtype":"F32","shape":[1])"), StatusCode::data_loss, "data_offsets"},
          {tensor(R"("dtype":"F32","data_offsets":[0,4])"), StatusCode::data_loss, "shape"},
          {tensor(R"("shape":[1],"data_offsets":[0,4])"), StatusCode::data_loss, "dtype"},
          {tensor(R"("dtype":7,"shape":[1],"data_offsets":[0,4])"), StatusCode::data_loss, "dtype"},
          {tensor(R"("dtype":"F31","shape":[1],"data_offsets":[0,4])"), StatusCode::unsupported, "'F31'"},
          {tensor(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), StatusCode::data_loss, "[-1]"},
          {tensor(R"("dtype":"F32","shape":[1.5],"data_offsets":[0,4])"), StatusCode::data_loss, "[1.5]"},
          {tensor(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])"), StatusCode::data_loss,
           "8 dimensions"},
          {tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), StatusCode::data_loss, "ascending"},
          {tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,8])"), StatusCode::data_loss, "two whole numbers"},
          {tensor(R"("dtype":"F32","shape":[1],"data_offsets":[-4,0])"), StatusCode::data_loss, "two whole numbers"},
          {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"), StatusCode::data_loss, "truncated"},
          {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), StatusCode::data_loss, "F32[2] takes, 8 bytes"},
          {tensor(R"("dtype":"F32","shape":[4611686018427387904,2],"data_offsets":[0,4])"), StatusCode::data_loss, "takes"},
          {R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
           StatusCode::data_loss, "'x' twice"},
          {R"({"__metadata__":{"a":1},"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", StatusCode::data_loss,
           "strings"},
      }) {
    SCOPED_TRACE(c.header.substr(0, 100));
    expect_failure(parse_header(c.header, "1234"), c.code, {c.part});
  }
}

TEST(Safetensors, OverlapsAndGaps) {
  const auto two = [](int a_begin, int a_end, int b_begin, int b_end) {
    const auto entry = [](int begin, int end) {
      return R"({"dtype":"U8","shape":[)" + std::to_string(end - begin) + R"(],"data_offsets":[)" + std::to_string(begin) +
             "," + std::to_string(end) + "]}";
    };
    return "{\"a\":" + entry(a_begin, a_end) + ",\"b\":" + entry(b_begin, b_end) + "}";
  };
  EXPECT_TRUE(parse_header(two(4, 8, 0, 4), "12345678").ok());  // order in the header does not matter
  expect_failure(parse_header(two(0, 5, 4, 8), "12345678"), StatusCode::data_loss, {"overlap", "'b'", "'a'", "byte 4"});
  expect_failure(parse_header(two(0, 8, 0, 8), "12345678"), StatusCode::data_loss, {"overlap"});
  expect_failure(parse_header(two(0, 3, 4, 8), "12345678"), StatusCode::data_loss,
                 {"1 bytes that belong to no tensor", "'b'"});
  expect_failure(parse_header(two(1, 4, 4, 8), "12345678"), StatusCode::data_loss, {"belong to no tensor"});
  expect_failure(parse_header(two(0, 4, 4, 7), "12345678"), StatusCode::data_loss, {"1 bytes more"});
}

TEST(Checkpoint, SingleFile) {
  const TemporaryFolder folder;
  folder.write("model.safetensors", safetensors_bytes(two_tensors));
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.status().to_string();
  ASSERT_NE(checkpoint->find("a"), nullptr);
  EXPECT_EQ(*reinterpret_cast<const char*>(checkpoint->find("a")->data), 'a');
  EXPECT_EQ(checkpoint->find("c"), nullptr);
}

TEST(Checkpoint, NothingToRead) {
  const TemporaryFolder folder;
  expect_failure(Checkpoint::open(folder.path()).status(), StatusCode::not_found, {"model.safetensors", "fetch"});
  folder.write("model.gguf", "GGUF");
  expect_failure(Checkpoint::open(folder.path()).status(), StatusCode::not_found, {"model.gguf", "converted"});
  folder.write("model.safetensors", "");
  expect_failure(Checkpoint::open(folder.path()).status(), StatusCode::data_loss, {"model.safetensors", "0 bytes"});
  std::filesystem::remove(folder.path() / "model.safetensors");
  std::filesystem::create_directory(folder.path() / "model.safetensors");
  EXPECT_EQ(Checkpoint::open(folder.path()).status().code(), StatusCode::io_error);
}

class Shards : public ::testing::Test {
 protected:
  void SetUp() override {
    folder.write("one.safetensors", safetensors_bytes(TensorMap{{"a", two_tensors.at("a")}}));
    folder.write("two.safetensors", safetensors_bytes(TensorMap{{"b", two_tensors.at("b")}}));
  }
  Status open(const std::string& weight_map) {
    folder.write("model.safetensors.index.json", "{\"metadata\":{},\"weight_map\":" + weight_map + "}");
    auto opened = Checkpoint::open(folder.path());
    if (!opened) return opened.status();
    found_a = opened->find("a") != nullptr;
    found_b = opened->find("b") != nullptr;
    return {};
  }
  TemporaryFolder folder;
  bool found_a = false, found_b = false;
};

TEST_F(Shards, AreJoined) {
  const Status status = open(R"({"a":"one.safetensors","b":"two.safetensors"})");
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_TRUE(found_a && found_b);
}

TEST_F(Shards, MissingOnesAreNamed) {
  expect_failure(open(R"({"a":"one.safetensors","b":"three.safetensors","c":"four.safetensors"})"), StatusCode::not_found,
                 {"3 shards", "'three.safetensors'", "'four.safetensors'"});
}

TEST_F(Shards, TensorsThatAreNotThere) {
  expect_failure(open(R"({"a":"one.safetensors","c":"two.safetensors"})"), StatusCode::data_loss,
                 {"'two.safetensors'", "'c'"});
}

TEST_F(Shards, WrongIndexes) {
  expect_failure(open("[]"), StatusCode::data_loss, {"weight_map"});
  expect_failure(open("{}"), StatusCode::data_loss, {"weight_map"});
  expect_failure(open(R"({"a":1})"), StatusCode::data_loss, {"'a'"});
  for (const char* outside :
       {"../one.safetensors", "/etc/passwd", "..", "", "sub/one.safetensors", "one\\u0000.safetensors"}) {
    expect_failure(open(std::string(R"({"a":")") + outside + "\"}"), StatusCode::data_loss, {"same folder"});
  }
  folder.write("model.safetensors.index.json", "{");
  expect_failure(Checkpoint::open(folder.path()).status(), StatusCode::data_loss, {"model.safetensors.index.json", "JSON"});
}

TEST_F(Shards, TruncatedOneIsNamed) {
  folder.write("two.safetensors", folder.read("two.safetensors").substr(0, 40));
  expect_failure(open(R"({"a":"one.safetensors","b":"two.safetensors"})"), StatusCode::data_loss,
                 {"two.safetensors", "truncated"});
}

TEST(SafetensorsHeader, IsReadBack) {
  const auto header = safetensors_header({{"b", DType::bf16, {3}}, {"a", DType::i32, {2, 1}}, {"none", DType::f32, {0, 4}}},
                                         {{"key", "a \"value\""}});
  ASSERT_TRUE(header) << header.status().to_string();
  EXPECT_EQ(header->size() % 64, 0u);
  const std::string file = *header + "bbbbbb" + "aaaaAAAA";
  const auto parsed = parse(file);
  ASSERT_TRUE(parsed) << parsed.status().to_string();
  EXPECT_EQ(parsed->metadata.at("key"), "a \"value\"");
  EXPECT_EQ(parsed->tensors.at("b").to_string(), "BF16[3]");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(parsed->tensors.at("a").data), 8), "aaaaAAAA");
  EXPECT_EQ(parsed->tensors.at("none").size_bytes, 0u);
  EXPECT_EQ(safetensors_header({{"a", DType::f32, {1}}, {"a", DType::f32, {1}}}).status().code(),
            StatusCode::invalid_argument);
}

}  // namespace
}  // namespace rarefy
