// expertd: see README.md.
#include "server/commands/commands.h"

int main(int argc, char** argv) { return expertd::RunCommandLine(argc, argv); }
