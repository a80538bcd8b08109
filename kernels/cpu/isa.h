// Which of the instruction sets that we have kernels for this processor and system offer.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertd::cpu {

// Ascending: a processor that has one has all before it.
enum class Isa : std::uint8_t {
  kAvx2,        // AVX2, FMA, F16C: arithmetic in f32
  kAvx512,      // + AVX-512 F, BW, DQ, VL: the same at twice the width
  kAvx512Bf16,  // + AVX512_BF16, AVX512_VBMI: bf16 dot products for bf16 rows
  kAmx,         // + AMX-TILE, AMX-BF16, and the kernel's permission to use them: bf16 tiles for bf16 rows
};
inline constexpr Isa kAllIsas[] = {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx};

absl::string_view IsaName(Isa isa);  // "avx2", "avx512", "avx512bf16", "amx"

// The best one here. Asks the system once for the AMX tile registers. Unimplemented: less than kAvx2.
absl::StatusOr<Isa> BestIsa();

// The isa of that name, or the best for "". InvalidArgument: unknown, or this processor does not have it.
absl::StatusOr<Isa> ChooseIsa(absl::string_view name);

// "AMD EPYC 9654 96-Core Processor"; "x86-64" where the processor does not say.
std::string ProcessorName();

}  // namespace expertd::cpu
