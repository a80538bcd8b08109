// How weights lie in memory for the kernels: one layout for every instruction set, weights in their stored format.
//
// A matrix W [outs, k] is cut into panels of 64 outputs, a panel being one contiguous stream that a kernel reads from
// front to back. A panel holds 4 units of 16 outputs; k is padded with zeros to a multiple of 32 and runs in groups
// (the last may be shorter), each a record of
//
// - scales: fp8 [unit] f32 (of the 128 x 128 block) and mxfp4 [unit][output] e8m0, padded to 64 bytes; else none;
// - codes: a row of `pair_bytes` for every pair (k, k + 1), the 64 outputs' weights as
//   - bf16: [unit][output][2], what the dot product instructions and the AMX tiles want;
//   - f16, f32: [unit][2][output];
//   - fp8: two blocks of 64 codes, [output / 4][unit of the block's two][output % 4][2]: interleaving bytes with bytes
//     in each 128-bit lane gives the two units' bf16 rows;
//   - mxfp4: 32 words of 16 bits, word 2 * output + (k % 2), nibble u being unit u's code.
//
// Sums run along k in order within a group, from zero, and are added to the result (times the group's scale) group by
// group: the result of a row does not depend on which rows stand beside it.
#pragma once

#include <cstdint>

namespace expertd::cpu {

enum class PackedFormat : std::uint8_t { kBF16, kF16, kF32, kFp8, kMxfp4 };
inline constexpr int kPackedFormats = 5;

inline constexpr int kUnitOuts = 16;
inline constexpr int kPanelUnits = 4;
inline constexpr int kPanelOuts = kUnitOuts * kPanelUnits;
inline constexpr int kKQuantum = 32;

struct FormatLayout {
  int group_k;
  int pair_bytes;
  int scale_bytes;
  bool exact_in_bf16;  // codes convert to bf16 without rounding
};

inline constexpr FormatLayout kFormatLayout[kPackedFormats] = {
    {128, 256, 0, true},   // bf16
    {128, 256, 0, false},  // f16
    {128, 512, 0, false},  // f32
    {128, 128, 64, true},  // fp8
    {32, 64, 64, true},    // mxfp4
};

}  // namespace expertd::cpu
