#include "rarefy/core/log.h"

#include <cstdlib>
#include <mutex>
#include <string_view>
#include <utility>

namespace rarefy {
namespace {

std::mutex& sink_mutex() {
  static std::mutex mutex;
  return mutex;
}

LogSink& sink() {
  static LogSink instance;
  return instance;
}

}  // namespace

void set_log_sink(LogSink new_sink) {
  const std::lock_guard lock(sink_mutex());
  sink() = std::move(new_sink);
}

void log_message(LogLevel level, std::string_view message) {
  if (level == LogLevel::info && !verbose()) return;
  const std::lock_guard lock(sink_mutex());
  if (sink()) sink()(level, message);
}

bool verbose() {
  const char* value = std::getenv("RAREFY_VERBOSE");
  return value != nullptr && *value != '\0' && std::string_view(value) != "0";
}

}  // namespace rarefy
