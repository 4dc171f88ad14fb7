// How a verb gives up: it throws a Failure, main() prints its message once and returns its exit code. Objects on the way out
// (temporary files, progress bars) clean up after themselves.
#pragma once

#include <string>
#include <utility>

#include "rarefy/core/status.h"

namespace rarefy::cli {

// Documented in docs/guide/cli.md and in the help of every verb.
enum class ExitCode : int {
  ok = 0,
  run_failed = 1,         // memory, disk, an internal error
  usage = 2,              // flags and policies
  bad_input = 3,          // a model, text or question file that cannot be used
  below_expectation = 4,  // demo: too few right answers
  promise_broken = 5,     // --audit-fail: more audited errors above eps than delta
  cancelled = 130,        // Ctrl-C
  closed_pipe = 141,      // the reader of standard output went away
};

struct Failure {
  ExitCode code = ExitCode::run_failed;
  std::string message;  // empty: nothing to say
};

[[noreturn]] void fail(ExitCode code, std::string message);

// A cancelled Status always ends with ExitCode::cancelled, running out of memory or disk with run_failed.
void check(const Status& status, ExitCode code = ExitCode::run_failed);

template <typename T>
T unwrap(Expected<T> expected, ExitCode code = ExitCode::run_failed) {
  check(expected.status(), code);
  return *std::move(expected);
}

}  // namespace rarefy::cli
