// Ctrl-C and SIGTERM: the first one asks the program to stop at the next chunk or token, the second one ends it at once.
#pragma once

namespace rarefy::cli {

void install_interrupt_handler();
bool interrupted();
// Ends the verb with ExitCode::cancelled when a signal has come.
void check_interrupt();

}  // namespace rarefy::cli
