// Version, log, threads.
#include <string>

#include "capi/call.h"
#include "rarefy/core/device.h"
#include "rarefy/core/log.h"

using namespace rarefy;

#define RAREFY_TEXT_INNER(x) #x
#define RAREFY_TEXT(x) RAREFY_TEXT_INNER(x)

int32_t rarefy_version(void) { return RAREFY_VERSION_MAJOR * 10000 + RAREFY_VERSION_MINOR * 100 + RAREFY_VERSION_PATCH; }

const char* rarefy_version_string(void) {
  return RAREFY_TEXT(RAREFY_VERSION_MAJOR) "." RAREFY_TEXT(RAREFY_VERSION_MINOR) "." RAREFY_TEXT(RAREFY_VERSION_PATCH);
}

void rarefy_set_log_callback(rarefy_log_callback callback, void* user_data) {
  capi::call([&] {
    if (callback == nullptr) {
      set_log_sink({});
    } else {
      set_log_sink([callback, user_data](LogLevel level, std::string_view message) {
        callback(level == LogLevel::warning ? RAREFY_LOG_WARNING : RAREFY_LOG_INFO, std::string(message).c_str(),
                 user_data);
      });
    }
    return RAREFY_OK;
  });
}

rarefy_status rarefy_set_num_threads(int32_t num_threads_in) {
  return capi::call([&]() -> Status {
    if (num_threads_in < 0) {
      return Status::invalid_argument("expected a number of threads, or 0 for all, got " + std::to_string(num_threads_in));
    }
    set_num_threads(num_threads_in);
    return {};
  });
}

int32_t rarefy_num_threads(void) { return num_threads(); }
