// The few instructions of sm_80's matrix path that have no C++ spelling.
#pragma once

#include <cstdint>

namespace expertd::cuda {

// Address in shared memory, as the instructions below want it.
__device__ inline std::uint32_t SharedAddress(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes to shared memory without waiting; with `valid` false it writes zeros and reads nothing.
__device__ inline void CopyAsync(std::uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0));
}
// The same for 8 or 4 bytes.
template <int kBytes>
__device__ inline void CopyAsyncSmall(std::uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes),
               "r"(valid ? kBytes : 0));
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;"); }
// Waits until at most kPending of this thread's committed groups are unfinished.
template <int kPending>
__device__ inline void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four (two) 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8, and receives of
// each matrix row l / 4, elements 2 (l % 4) and the next; with kTransposed: column l / 4.
template <bool kTransposed = false>
__device__ inline void LoadMatrices4(std::uint32_t address, std::uint32_t& a, std::uint32_t& b, std::uint32_t& c,
                                     std::uint32_t& d) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(address));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(address));
  }
}
__device__ inline void LoadMatrices2(std::uint32_t address, std::uint32_t& a, std::uint32_t& b) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(a), "=r"(b) : "r"(address));
}

// Transposes an 8x8 matrix of 16-bit elements that lies across the warp.
__device__ inline std::uint32_t TransposeMatrix(std::uint32_t word) {
  std::uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(word));
  return result;
}

// c[16, 8] += a[16, 16] . b[16, 8], bf16 in, f32 sums. Of c, lane l holds rows l / 4 and l / 4 + 8, columns 2 (l % 4)
// and the next.
__device__ inline void MultiplyAdd(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace expertd::cuda
