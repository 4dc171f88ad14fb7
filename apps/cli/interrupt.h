// Ctrl-C and SIGTERM: the first one asks the program to stop at the next chunk or token, the second one ends it at once. A verb
// that goes on after a Ctrl-C takes it back with clear_interrupt().
#pragma once

namespace rarefy::cli {

void install_interrupt_handler();
bool interrupted();
bool terminated();  // by SIGTERM, which nothing takes back
// Forgets a Ctrl-C, so that the next one counts as the first again.
void clear_interrupt();
// Ends the verb with ExitCode::cancelled when a signal has come.
void check_interrupt();

}  // namespace rarefy::cli
