#include "interrupt.h"

#include <csignal>

#include "failure.h"

namespace rarefy::cli {
namespace {

volatile std::sig_atomic_t stop_requested = 0;  // the signal, or 0

}  // namespace

void install_interrupt_handler() {
  struct sigaction action = {};
  action.sa_handler = [](int signal) { stop_requested = signal; };
  action.sa_flags = SA_RESETHAND;  // no SA_RESTART: a read from the terminal ends, too
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  // A closed pipe shows up as a failed write, which ends the program quietly.
  std::signal(SIGPIPE, SIG_IGN);
}

bool interrupted() { return stop_requested != 0; }

bool terminated() { return stop_requested == SIGTERM; }

void clear_interrupt() {
  if (terminated()) return;
  stop_requested = 0;
  install_interrupt_handler();
}

void check_interrupt() {
  if (interrupted()) fail(ExitCode::cancelled, "cancelled");
}

}  // namespace rarefy::cli
