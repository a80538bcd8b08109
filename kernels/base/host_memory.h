// The memory of this machine, for engines whose device is the machine itself.
#pragma once

#include "kernels/engine.h"

namespace expertd {

// As the kernel tells (/proc/meminfo); free is what programs could get without swapping. Zeros where it does not tell.
DeviceMemory HostMemory();

}  // namespace expertd
