#include "rarefy/core/registry.h"

#include <cstdlib>

namespace rarefy {

std::string forced_implementation(std::string_view op) {
  const char* variable = std::getenv("RAREFY_FORCE_IMPL");
  if (variable == nullptr) return {};
  std::string_view rest = variable;
  std::string general;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    const std::string_view entry = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
    const size_t equals = entry.find('=');
    if (equals == std::string_view::npos) {
      general = entry;
    } else if (entry.substr(0, equals) == op) {
      return std::string(entry.substr(equals + 1));
    }
  }
  return general;
}

}  // namespace rarefy
