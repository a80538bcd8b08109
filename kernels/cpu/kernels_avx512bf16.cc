// Compiled with AVX-512 F, BW, DQ, VL, BF16 and VBMI.
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/simd_avx512.h"

namespace expertd::cpu {

const IsaKernels kAvx512Bf16Kernels = {
    .f32_rows = {Panel<Avx512, PackedFormat::kBF16, false>, Panel<Avx512, PackedFormat::kF16, false>,
                 Panel<Avx512, PackedFormat::kF32, false>, Panel<Avx512, PackedFormat::kFp8, false>,
                 Panel<Avx512, PackedFormat::kMxfp4, false>},
    .bf16_rows = {Panel<Avx512, PackedFormat::kBF16, true>, nullptr, nullptr, Panel<Avx512, PackedFormat::kFp8, true>,
                  Panel<Avx512, PackedFormat::kMxfp4, true>},
    .activate = Activate<Avx512>,
    .combine = Combine<Avx512>,
    .convert = Convert<Avx512>,
};

}  // namespace expertd::cpu
