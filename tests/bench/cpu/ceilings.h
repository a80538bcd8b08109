// What this machine can do at best: the figures that the CPU engine's are held against.
#pragma once

#include <cstdint>

namespace expertd::bench {

// Bytes per second of `threads` threads that only read, each its own part of 1.5 GiB of huge pages: the best of
// `passes`.
double ReadBandwidth(int threads, int passes);

// Floating-point operations per second of oneDNN's bf16 matmul with weights packed as it likes: the best over a few
// large shapes and `passes` runs of each. The number of threads is OMP_NUM_THREADS, to be set before the program
// starts. 0 where oneDNN has no bf16 matmul for this processor.
double DnnlBf16MatmulRate(int passes);

}  // namespace expertd::bench
