#include "run_record.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "rarefy/core/build_info.h"
#include "rarefy/core/device.h"

namespace rarefy::cli {
namespace {

std::string command_line;

std::string quote(const std::string& argument) {
  const bool plain = !argument.empty() && argument.find_first_of(" \t\n\"'\\$`*?;&|<>()") == std::string::npos;
  return plain ? argument : fmt::format("'{}'", argument);
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown CPU";
}

}  // namespace

void set_command_line(int argc, const char* const* argv) {
  command_line = "rarefy";
  for (int i = 1; i < argc; ++i) command_line += fmt::format(" {}", quote(argv[i]));
}

std::string device_name() { return fmt::format("{}, {} threads", cpu_name(), num_threads()); }

nlohmann::ordered_json new_record(const std::string& bench) { return {{"bench", bench}}; }

void append_origin(nlohmann::ordered_json& record) {
  record["device"] = device_name();
  record["commit"] = build_info().commit;
  if (build_info().modified) record["modified"] = true;
  record["command"] = command_line;
  record["date"] = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
}

}  // namespace rarefy::cli
