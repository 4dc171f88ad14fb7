// Finished contexts of a long evaluation, one JSON object a line, so that a run that was stopped goes on where it was. The
// first line says what the run was made with; a file of another run is refused.
#pragma once

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

namespace rarefy::cli {

class ResumeFile {
 public:
  // An empty path keeps nothing. An unfinished last line (the run was killed) is dropped.
  ResumeFile(std::string path, const nlohmann::json& run);
  ~ResumeFile();
  ResumeFile(const ResumeFile&) = delete;
  ResumeFile& operator=(const ResumeFile&) = delete;

  // The finished context `id`, or null.
  const nlohmann::json* find(const std::string& id) const;
  void append(const std::string& id, const nlohmann::json& result);

 private:
  std::string path_;
  nlohmann::json finished_ = nlohmann::json::object();  // by id
  std::FILE* file_ = nullptr;
};

}  // namespace rarefy::cli
