#include "resume_file.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "failure.h"
#include "files.h"

namespace rarefy::cli {

ResumeFile::ResumeFile(std::string path, const nlohmann::json& run) : path_(std::move(path)) {
  if (path_.empty()) return;
  const std::string header = nlohmann::json{{"run", run}}.dump() + "\n";
  std::string kept = header;
  std::error_code ignored;
  if (std::filesystem::exists(path_, ignored)) {
    const std::string text = read_text(path_);
    const std::string first = text.substr(0, text.find('\n') + 1);
    if (!text.empty() && first != header) {
      fail(ExitCode::usage, fmt::format("--resume {}: expected a file of this run, {}got a file that starts with {}; name "
                                        "another file or remove this one",
                                        path_, header, first.substr(0, first.size() - std::min<size_t>(1, first.size()))));
    }
    for (size_t begin = header.size(); begin < text.size();) {
      const size_t end = text.find('\n', begin);
      if (end == std::string::npos) break;
      nlohmann::json line = nlohmann::json::parse(text.substr(begin, end - begin), nullptr, false);
      if (!line.is_object() || !line.contains("id") || !line.contains("result")) break;
      finished_[line["id"].get<std::string>()] = std::move(line["result"]);
      kept += text.substr(begin, end + 1 - begin);
      begin = end + 1;
    }
  }
  Output output(path_);
  output.write(kept);
  output.commit();
  file_ = std::fopen(path_.c_str(), "ab");
  if (file_ == nullptr) fail(ExitCode::run_failed, fmt::format("--resume {}: {}", path_, std::strerror(errno)));
}

ResumeFile::~ResumeFile() {
  if (file_ != nullptr) std::fclose(file_);
}

const nlohmann::json* ResumeFile::find(const std::string& id) const {
  const auto found = finished_.find(id);
  return found == finished_.end() ? nullptr : &*found;
}

void ResumeFile::append(const std::string& id, const nlohmann::json& result) {
  if (file_ == nullptr) return;
  const std::string line = nlohmann::json{{"id", id}, {"result", result}}.dump() + "\n";
  if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() || std::fflush(file_) != 0) {
    fail(ExitCode::run_failed, fmt::format("--resume {}: cannot write: {}", path_, std::strerror(errno)));
  }
}

}  // namespace rarefy::cli
