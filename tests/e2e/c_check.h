/* Checks for the C99 clients of the C interface: a failure is reported and counted, the last error beside it. */
#ifndef RAREFY_TESTS_E2E_C_CHECK_H_
#define RAREFY_TESTS_E2E_C_CHECK_H_

#include <stdio.h>

#include "rarefy/rarefy.h"

static int num_failures = 0;

static void check(int ok, const char* what, int line) {
  if (ok) return;
  fprintf(stderr, "line %d: failed: %s (last error: %s)\n", line, what, rarefy_last_error());
  ++num_failures;
}
#define CHECK(condition) check((condition), #condition, __LINE__)
/* What follows depends on it. */
#define REQUIRE(condition)      \
  do {                          \
    CHECK(condition);           \
    if (num_failures) return 1; \
  } while (0)

#endif
