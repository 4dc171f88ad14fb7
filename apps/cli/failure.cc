#include "failure.h"

namespace rarefy::cli {

void fail(ExitCode code, std::string message) { throw Failure{code, std::move(message)}; }

void check(const Status& status, ExitCode code) {
  if (status.ok()) return;
  if (status.code() == StatusCode::cancelled) code = ExitCode::cancelled;
  if (status.code() == StatusCode::internal) code = ExitCode::run_failed;
  fail(code, status.message());
}

}  // namespace rarefy::cli
