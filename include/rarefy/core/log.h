// The library prints nothing by itself: messages go to a sink, which is empty until an application sets one. RAREFY_VERBOSE=1
// in the environment makes the library produce informational messages (implementation choices, refusals); without it only
// warnings are produced. Thread-safe.
#pragma once

#include <functional>
#include <string_view>

namespace rarefy {

enum class LogLevel { info = 0, warning = 1 };

using LogSink = std::function<void(LogLevel, std::string_view)>;

void set_log_sink(LogSink sink);  // an empty function silences
void log_message(LogLevel level, std::string_view message);
bool verbose();  // RAREFY_VERBOSE is set and not 0

}  // namespace rarefy
