#include "policy_text.h"

#include "failure.h"
#include "files.h"

namespace rarefy::cli {
namespace {

std::string without_comments(const std::string& text) {
  std::string result;
  bool comment = false;
  for (const char c : text) {
    comment = c == '#' || (comment && c != '\n');
    if (!comment) result += c;
  }
  return result;
}

}  // namespace

Policy read_policy(const std::string& text) {
  if (!text.starts_with('@')) return unwrap(Policy::parse(text), ExitCode::usage);
  const std::string file = text.substr(1);
  Expected<Policy> policy = Policy::parse(without_comments(read_text(file)));
  check(policy.status().with_context(file), ExitCode::usage);
  return *std::move(policy);
}

}  // namespace rarefy::cli
