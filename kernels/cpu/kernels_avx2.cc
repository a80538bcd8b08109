// Compiled with -mavx2 -mfma -mf16c.
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/simd_avx2.h"

namespace expertd::cpu {

const IsaKernels kAvx2Kernels = {
    .f32_rows = {Panel<Avx2, PackedFormat::kBF16, false>, Panel<Avx2, PackedFormat::kF16, false>,
                 Panel<Avx2, PackedFormat::kF32, false>, Panel<Avx2, PackedFormat::kFp8, false>,
                 Panel<Avx2, PackedFormat::kMxfp4, false>},
    .bf16_rows = {},
    .activate = Activate<Avx2>,
    .combine = Combine<Avx2>,
    .convert = Convert<Avx2>,
};

}  // namespace expertd::cpu
