#include "kernels/cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace expertd::cpu {
namespace {

// The tile registers are 8 KiB of state that Linux saves for a process only after it has asked (arch_prctl(2)).
bool RequestTileRegisters() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Bit `bit` of register ecx (2) or edx (3) of the processor's answer to a question of subleaf 0.
bool CpuidBit(unsigned leaf, int reg, int bit) {
  std::array<unsigned, 4> regs{};
  return __get_cpuid_count(leaf, 0, &regs[0], &regs[1], &regs[2], &regs[3]) != 0 && (regs[reg] >> bit & 1) != 0;
}

bool Has(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && CpuidBit(1, 2, 29);
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Bf16:
      return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
    case Isa::kAmx:  // AMX-BF16, AMX-TILE
      return CpuidBit(7, 3, 22) && CpuidBit(7, 3, 24) && RequestTileRegisters();
  }
  return false;
}

int CountIsas() {
  __builtin_cpu_init();
  int count = 0;
  for (Isa isa : kAllIsas) {
    if (!Has(isa)) break;
    ++count;
  }
  return count;
}

}  // namespace

absl::string_view IsaName(Isa isa) {
  constexpr absl::string_view kNames[] = {"avx2", "avx512", "avx512bf16", "amx"};
  return kNames[static_cast<int>(isa)];
}

absl::StatusOr<Isa> BestIsa() {
  static const int count = CountIsas();
  if (count == 0) return absl::UnimplementedError("cpu: this processor has no AVX2, FMA and F16C");
  return kAllIsas[count - 1];
}

absl::StatusOr<Isa> ChooseIsa(absl::string_view name) {
  absl::StatusOr<Isa> best = BestIsa();
  if (!best.ok() || name.empty()) return best;
  for (Isa isa : kAllIsas) {
    if (name != IsaName(isa)) continue;
    if (isa <= *best) return isa;
    return absl::InvalidArgumentError(
        absl::StrCat("isa: ", name, " is not available here, the best is ", IsaName(*best)));
  }
  return absl::InvalidArgumentError(absl::StrCat("isa: '", name, "' is none of avx2, avx512, avx512bf16, amx"));
}

std::string ProcessorName() {
  std::array<unsigned, 12> words{};
  for (unsigned i = 0; i < 3; ++i) {
    if (__get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]) == 0) {
      return "x86-64";
    }
  }
  std::array<char, sizeof(words) + 1> text{};
  std::memcpy(text.data(), words.data(), sizeof(words));
  return std::string(absl::StripAsciiWhitespace(text.data()));
}

}  // namespace expertd::cpu
