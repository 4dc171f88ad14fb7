// Input and output of the verbs.
#pragma once

#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace rarefy::cli {

// The bytes of a file; "-" is standard input. Fails with ExitCode::bad_input.
std::string read_text(const std::string& path);

// One JSON object per line, with where each was found ("questions.jsonl:3") for messages. Fails with ExitCode::bad_input.
std::vector<std::pair<std::string, nlohmann::json>> read_json_lines(const std::string& path);

// Where results go: standard output when the path is empty or "-". A regular file is written under a temporary name beside it
// and renamed by commit(); without commit() nothing is left behind. A full disk or a closed pipe fails the verb.
class Output {
 public:
  explicit Output(const std::string& path = {});
  ~Output();
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  void write(std::string_view text);
  void write_bytes(const void* data, size_t size_bytes);  // data [size_bytes] bytes
  void flush();
  void commit();

 private:
  [[noreturn]] void fail_write(int error);

  std::string path_;            // empty: standard output
  std::string temporary_path_;  // empty: written in place
  std::FILE* file_ = nullptr;
};

}  // namespace rarefy::cli
