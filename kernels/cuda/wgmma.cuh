// Hopper's instructions that have no C++ spelling: barriers in shared memory, tiles copied by the tensor memory
// accelerator, products of warpgroups. Each compiles to nothing where the architecture lacks it; nothing calls it
// there.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace expertd::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define EXPERTD_SM90A(...) asm volatile(__VA_ARGS__)
#else
#define EXPERTD_SM90A(...)
#endif

// Counts arrivals and bytes; a phase ends when both are there. Waiters name the parity of the phase.
class Barrier {
 public:
  __device__ explicit Barrier(std::uint32_t address) : address_(address) {}

  __device__ void Init(int arrivals) const {
    EXPERTD_SM90A("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_), "r"(arrivals));
  }
  __device__ void Arrive() const {
    EXPERTD_SM90A("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address_) : "memory");
  }
  __device__ void ArriveAndExpect(int bytes) const {
    EXPERTD_SM90A("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address_), "r"(bytes) : "memory");
  }
  __device__ void Expect(int bytes) const {
    EXPERTD_SM90A("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(address_), "r"(bytes) : "memory");
  }
  __device__ void Wait(std::uint32_t parity) const {
    EXPERTD_SM90A(
        "{\n.reg .pred done;\nwaiting:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra ready;\nbra waiting;\nready:\n}" ::"r"(address_),
        "r"(parity)
        : "memory");
  }
  __device__ std::uint32_t address() const { return address_; }

 private:
  std::uint32_t address_;
};

// Makes initialised barriers visible to the copies.
__device__ inline void FenceBarriers() { EXPERTD_SM90A("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Orders this thread's ordinary stores to shared memory before what copies and products do next.
__device__ inline void FenceAsync() { EXPERTD_SM90A("fence.proxy.async.shared::cta;" ::: "memory"); }
// Waits for kThreads threads that name the same barrier; 0 is __syncthreads'.
template <int kBarrier, int kThreads>
__device__ inline void SyncSome() {
  asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
}
// The same for a warpgroup, whose barrier is chosen when it runs.
__device__ inline void SyncWarpgroup(int barrier) { asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory"); }
// Starts the copy of the map's box at (x, y, z); its bytes arrive at `barrier`.
__device__ inline void CopyBox(std::uint32_t to, const CUtensorMap& map, int x, int y, int z, const Barrier& barrier) {
  EXPERTD_SM90A(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
          "r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier.address())
      : "memory");
}
__device__ inline void CopyBox(std::uint32_t to, const CUtensorMap& map, int x, int y, int z, int u, int v,
                               const Barrier& barrier) {
  EXPERTD_SM90A(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5, %6}], "
      "[%7];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v), "r"(barrier.address())
      : "memory");
}
// Copies of 16 bytes by this thread; they count as one arrival at the barrier when all that came before are there.
__device__ inline void CopyChunk(std::uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void ArriveWhenCopied(const Barrier& barrier) {
  EXPERTD_SM90A("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier.address()) : "memory");
}

// What is read once: L2 gives its lines away first, instead of what others will want, or what it would have to write to
// memory.
__device__ inline std::uint64_t ReadOnce() {
  std::uint64_t policy = 0;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
// CopyChunk of what is read once, if `valid`.
__device__ inline void CopyChunkOnce(std::uint32_t to, const void* from, bool valid, std::uint64_t policy) {
  asm volatile(
      "{\n.reg .pred copies;\nsetp.ne.u32 copies, %3, 0;\n"
      "@copies cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;\n}" ::"r"(to),
      "l"(from), "l"(policy), "r"(static_cast<std::uint32_t>(valid))
      : "memory");
}
__device__ inline void CopyChunk(std::uint32_t to, const void* from, bool valid) {
  asm volatile(
      "{\n.reg .pred copies;\nsetp.ne.u32 copies, %2, 0;\n@copies cp.async.cg.shared.global [%0], [%1], 16;\n}" ::"r"(
          to),
      "l"(from), "r"(static_cast<std::uint32_t>(valid))
      : "memory");
}

// `bytes` from one place to another, both multiples of 16; they arrive at `barrier`.
__device__ inline void CopyBulk(std::uint32_t to, const void* from, int bytes, const Barrier& barrier) {
  EXPERTD_SM90A("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                "l"(from), "r"(bytes), "r"(barrier.address())
                : "memory");
}

__device__ inline std::uint32_t LoadSharedWord(std::uint32_t from) {
  std::uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
  return word;
}
__device__ inline uint2 LoadSharedPair(std::uint32_t from) {
  uint2 words;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(words.x), "=r"(words.y) : "r"(from) : "memory");
  return words;
}
__device__ inline uint4 LoadShared(std::uint32_t from) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(from)
               : "memory");
  return words;
}

// Orders ordinary accesses to global memory with copies, either way round.
__device__ inline void FenceAsyncGlobal() { EXPERTD_SM90A("fence.proxy.async;" ::: "memory"); }

// 8 x 8 blocks of bf16, transposed on their way to shared memory: a thread gives two neighbouring elements of row
// lane / 4 of each block; lane i of each eight names where the block's column i % 8 goes, as 16 bytes.
__device__ inline void StoreTransposed(std::uint32_t to, std::uint32_t block0, std::uint32_t block1) {
  EXPERTD_SM90A("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to), "r"(block0), "r"(block1)
                : "memory");
}
__device__ inline void StoreTransposed(std::uint32_t to, std::uint32_t block0, std::uint32_t block1,
                                       std::uint32_t block2, std::uint32_t block3) {
  EXPERTD_SM90A("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(block0),
                "r"(block1), "r"(block2), "r"(block3)
                : "memory");
}

// Programmatic dependent launch. A kernel that was launched early waits for the one before it, and sees all it wrote.
__device__ inline void WaitForPrevious() { EXPERTD_SM90A("griddepcontrol.wait;" ::: "memory"); }
// Lets the next kernel be launched early: its blocks then wait for this kernel's end.
__device__ inline void LaunchNext() { EXPERTD_SM90A("griddepcontrol.launch_dependents;" ::: "memory"); }

__device__ inline int LoadAcquire(const std::int32_t* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

template <int kRegisters>
__device__ inline void GrowRegisters() {
  EXPERTD_SM90A("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void ShrinkRegisters() {
  EXPERTD_SM90A("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// An operand in shared memory: atoms of 8 lines of 128 bytes, chunks of 16 bytes swizzled as CopyBox leaves them.
// `across`: bytes to the next 64 elements along a line's direction; unused where one line is enough.
__device__ inline std::uint64_t Operand(std::uint32_t address, int across) {
  constexpr std::uint64_t kAtomBytes = 8 * 128, kSwizzle128 = std::uint64_t{1} << 62;
  return kSwizzle128 | (kAtomBytes >> 4) << 32 | static_cast<std::uint64_t>(across >> 4) << 16 |
         static_cast<std::uint64_t>((address & 0x3ffff) >> 4);
}

__device__ inline void ProductsFence() { EXPERTD_SM90A("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void CommitProducts() { EXPERTD_SM90A("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kPending of the committed groups are unfinished.
template <int kPending>
__device__ inline void WaitProducts() {
  EXPERTD_SM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps reads of a finished product's sums behind the wait for it: to the compiler they look ready when they are asked
// for.
template <int kCount>
__device__ inline void SumsAreReady(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// d[64, 256] += a[64, 16] . b[16, 256] by a warpgroup, bf16 in, f32 sums; lines of b run along 256, lines of a along 16
// or, with kLinesAlongM, along 64. Lane l of warp w holds rows 16 w + l / 4 (and + 8 in the second pair of each four),
// columns 8 i + 2 (l % 4) and the next in d[4 i].
template <bool kLinesAlongM>
__device__ inline void MultiplyTile(float (&d)[128], std::uint64_t a, std::uint64_t b) {
  EXPERTD_SM90A(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, 1, 1, 1, %130, 1;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),
        "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]),
        "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]),
        "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]),
        "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]),
        "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]),
        "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]),
        "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), "+f"(d[112]),
        "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]),
        "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
      : "l"(a), "l"(b), "n"(kLinesAlongM ? 1 : 0));
}

}  // namespace expertd::cuda
