// Shared objects that register selectors.
#include <dlfcn.h>

#include <exception>
#include <mutex>
#include <set>
#include <system_error>

#include "rarefy/core/log.h"
#include "rarefy/rarefy.h"
#include "rarefy/select/registry.h"

namespace rarefy {
namespace {

// What went wrong in a plugin's calls of the api, which return a status only. Under the loader's lock.
Status* first_failure = nullptr;

rarefy_status keep(Status status) {
  const auto code = static_cast<rarefy_status>(status.code());
  if (!status.ok() && first_failure != nullptr && first_failure->ok()) *first_failure = std::move(status);
  return code;
}

rarefy_status api_register_selector(const rarefy_selector_type* type) {
  try {
    if (type == nullptr) return keep(Status::invalid_argument("selector: expected a rarefy_selector_type, got NULL"));
    return keep(register_selector(*type));
  } catch (const std::exception& error) {
    return keep(Status::internal(error.what()));
  }
}

void api_log(rarefy_log_level level, const char* message) {
  if (message == nullptr) return;
  try {
    log_message(level == RAREFY_LOG_WARNING ? LogLevel::warning : LogLevel::info, message);
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): a message is lost, nothing else
  }
}

constexpr rarefy_plugin_api kApi = {
    .struct_size = sizeof(rarefy_plugin_api),
    .abi = RAREFY_PLUGIN_ABI,
    .version = RAREFY_VERSION_MAJOR * 10000 + RAREFY_VERSION_MINOR * 100 + RAREFY_VERSION_PATCH,
    .register_selector = api_register_selector,
    .log = api_log,
};

Status init(rarefy_plugin_init_function function) {
  Status registration;
  rarefy_status status = RAREFY_INTERNAL;
  first_failure = &registration;
  std::string thrown;
  try {
    status = function(&kApi);
  } catch (const std::exception& error) {
    thrown = std::string("rarefy_plugin_init threw: ") + error.what();
  } catch (...) {
    thrown = "rarefy_plugin_init threw an unknown exception";
  }
  first_failure = nullptr;
  if (!thrown.empty()) return Status::invalid_argument(thrown);
  RAREFY_RETURN_IF_ERROR(registration);
  if (status == RAREFY_OK) return {};
  return {status > RAREFY_OK && status <= RAREFY_INTERNAL ? static_cast<StatusCode>(status) : StatusCode::internal,
          "rarefy_plugin_init gave up with status " + std::to_string(status)};
}

}  // namespace

Status load_plugin(const std::filesystem::path& file) {
  static std::mutex mutex;
  static std::set<void*> loaded;  // handles
  const std::lock_guard lock(mutex);
  const std::string context = "plugin " + file.string();
  std::error_code error;
  // A name without a slash would be looked up in the system's folders.
  const std::filesystem::path path = std::filesystem::absolute(file, error);
  if (error || !std::filesystem::is_regular_file(path, error)) {
    return Status::not_found("expected a shared object, found no such file").with_context(context);
  }
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    return Status::invalid_argument(std::string("expected a shared object that links against nothing of Rarefy: ") +
                                    (reason != nullptr ? reason : "dlopen failed"))
        .with_context(context);
  }
  if (loaded.contains(handle)) {
    dlclose(handle);  // counted down; the first load keeps it
    return {};
  }
  void* symbol = dlsym(handle, "rarefy_plugin_init");
  if (symbol == nullptr) {
    dlclose(handle);
    return Status::invalid_argument("expected a function rarefy_plugin_init with C linkage, found none; is it a plugin?")
        .with_context(context);
  }
  // Whatever it has registered by now may be in use: it is never unloaded.
  const Status status = init(reinterpret_cast<rarefy_plugin_init_function>(symbol));
  if (status.ok()) loaded.insert(handle);
  return status.with_context(context);
}

}  // namespace rarefy
