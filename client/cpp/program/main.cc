// expertd-client: look at, call and load-test an expertd server.
#include "client/cpp/program/commands.h"

int main(int argc, char** argv) { return expertd::client::RunCommandLine(argc, argv); }
