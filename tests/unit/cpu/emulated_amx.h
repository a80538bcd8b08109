// The kernels of kernels_amx.cc on tiles that are computed in plain C++.
#pragma once

#include "kernels/cpu/isa_kernels.h"

namespace expertd::cpu {

extern const IsaKernels kEmulatedAmxKernels;  // for a processor of Isa::kAvx512Bf16

}  // namespace expertd::cpu
