#include "files.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "failure.h"
#include "interrupt.h"

namespace rarefy::cli {

std::string read_text(const std::string& path) {
  const bool is_stdin = path == "-";
  std::error_code ignored;
  if (!is_stdin && std::filesystem::is_directory(path, ignored)) {
    fail(ExitCode::bad_input, fmt::format("{}: expected a text file, got a folder", path));
  }
  std::FILE* file = is_stdin ? stdin : std::fopen(path.c_str(), "rb");
  if (file == nullptr) fail(ExitCode::bad_input, fmt::format("{}: cannot read the file: {}", path, std::strerror(errno)));
  std::string text;
  char buffer[1 << 16];
  size_t count = 0;
  while ((count = std::fread(buffer, 1, sizeof buffer, file)) > 0) text.append(buffer, count);
  const int error = std::ferror(file) != 0 ? errno : 0;
  if (!is_stdin) std::fclose(file);
  check_interrupt();
  if (error != 0) fail(ExitCode::bad_input, fmt::format("{}: cannot read the file: {}", path, std::strerror(error)));
  return text;
}

std::vector<std::pair<std::string, nlohmann::json>> read_json_lines(const std::string& path) {
  const std::string text = read_text(path);
  std::vector<std::pair<std::string, nlohmann::json>> lines;
  size_t begin = 0;
  for (int64_t number = 1; begin < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}:{}", path, number);
    nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
    if (!object.is_object()) {
      fail(ExitCode::bad_input, where + ": expected one JSON object on the line (UTF-8), got something else");
    }
    lines.emplace_back(where, std::move(object));
  }
  if (lines.empty()) fail(ExitCode::bad_input, path + ": expected at least one JSON object, got an empty file");
  return lines;
}

Output::Output(const std::string& path) : path_(path == "-" ? "" : path) {
  if (path_.empty()) {
    file_ = stdout;
    return;
  }
  // Devices and pipes cannot be renamed over.
  std::error_code ignored;
  const auto status = std::filesystem::status(path_, ignored);
  const bool in_place = std::filesystem::exists(status) && !std::filesystem::is_regular_file(status);
  if (!in_place) temporary_path_ = fmt::format("{}.partial-{}", path_, getpid());
  file_ = std::fopen(in_place ? path_.c_str() : temporary_path_.c_str(), "wb");
  if (file_ == nullptr) {
    temporary_path_.clear();
    fail(ExitCode::run_failed, fmt::format("{}: cannot write there: {}; name another file", path_, std::strerror(errno)));
  }
}

Output::~Output() {
  if (path_.empty() || file_ == nullptr) return;
  std::fclose(file_);
  if (!temporary_path_.empty()) std::remove(temporary_path_.c_str());
}

void Output::fail_write(int error) {
  if (path_.empty() && error == EPIPE) fail(ExitCode::closed_pipe, "");
  fail(ExitCode::run_failed, fmt::format("{}: cannot write: {}; nothing was kept",
                                         path_.empty() ? "standard output" : path_, std::strerror(error)));
}

void Output::write(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), file_) != text.size()) fail_write(errno);
}

void Output::write_bytes(const void* data, size_t size_bytes) { write({static_cast<const char*>(data), size_bytes}); }

void Output::flush() {
  if (std::fflush(file_) != 0) fail_write(errno);
}

void Output::commit() {
  flush();
  if (path_.empty()) return;
  std::FILE* file = std::exchange(file_, nullptr);
  const bool synced = temporary_path_.empty() || fsync(fileno(file)) == 0;
  const int sync_error = errno;
  if (std::fclose(file) != 0 || !synced) {
    const int error = synced ? errno : sync_error;
    if (!temporary_path_.empty()) std::remove(temporary_path_.c_str());
    fail_write(error);
  }
  if (!temporary_path_.empty() && std::rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    std::remove(temporary_path_.c_str());
    fail_write(error);
  }
}

}  // namespace rarefy::cli
