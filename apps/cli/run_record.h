// What every line of results says about where it comes from (the fields that results/*.jsonl must have).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace rarefy::cli {

// Called once by main(); results repeat the command, the program without its folder.
void set_command_line(int argc, const char* const* argv);

std::string device_name();  // "AMD EPYC 9534, 2 threads"

// {"bench": ...}; what was measured comes after it, append_origin() adds device, commit, command and date at the end.
nlohmann::ordered_json new_record(const std::string& bench);
void append_origin(nlohmann::ordered_json& record);

}  // namespace rarefy::cli
