// A kernel that does nothing: what the replay of any graph costs at least.
#pragma once

namespace expertd::bench {

// Enqueues on `stream`, a cudaStream_t.
void LaunchEmptyKernel(void* stream);

}  // namespace expertd::bench
