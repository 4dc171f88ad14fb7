// Selectors from outside.
#include "capi/call.h"
#include "rarefy/select/registry.h"

using namespace rarefy;
using capi::call;
using capi::require;

rarefy_status rarefy_register_selector(const rarefy_selector_type* type) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(type, "a selector type"));
    return register_selector(*type);
  });
}

rarefy_status rarefy_load_plugin(const char* path) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(path, "the path of a plugin"));
    return load_plugin(path);
  });
}
