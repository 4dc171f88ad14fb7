#include "verbs.h"
namespace rarefy::cli { void add_replay(CLI::App&) {} }
