// How the fused kernel likes weights in memory: plain arithmetic, for whoever packs them and whoever reads them.
//
// A block is 128 weight rows by 128 of K, and one copy brings it: scales first, then two halves of 64 of K, each with a
// line for every row; or, where rows are e4m3 too, lines of 128 of K and then scales, so that the lines are aligned.
// Blocks of a tile of 128 rows follow each other along K, tiles follow each other, then experts. A line of bf16, or of
// kFp8Both, is 128 bytes whose chunks of 16 are swizzled as wgmma reads them from shared memory. Another line of codes
// is for registers, and stands as a lane of wgmma wants it: lane c of four multiplies, of every 16 elements, 2 c, 2 c +
// 1, 2 c + 8 and 2 c + 9, so a quarter of the line is its own. What is past the matrix is zero.
//
// Scales. e4m3: two f32, of the block's even and odd eights of rows (gate and up; the same number where rows are not
// paired). e2m1: a byte for each row and 32 of K, four of a row together, the
// e8m0 code plus kFp4ScaleOffset: with it, codes and scale multiplied as bf16 give the weight times 2^-64 without a
// step in between, exactly for scales from 2^-61 to 2^65. Smaller ones lose bits, larger ones are infinite.
#pragma once

#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

inline constexpr int kPackedRows = 128, kPackedK = 128, kPackedLineK = 64;

inline constexpr int kFp4ScaleOffset = 62;

// Which weight rows a tile holds: those of a matrix in their order, or eight rows of gate, the eight of up that belong
// to them, and so on, of a matrix with all of gate first.
enum class Packing : std::uint8_t { kNone, kRows, kGateUp };

struct PackedBlock {
  WeightCode code;
  constexpr int line_k() const { return code == WeightCode::kFp8Both ? kPackedK : kPackedLineK; }
  constexpr int line_bytes() const {
    return code == WeightCode::kMxfp4 ? line_k() / 2 : code == WeightCode::kBF16 ? line_k() * 2 : line_k();
  }
  constexpr int half_bytes() const { return kPackedRows * line_bytes(); }  // all of kFp8Both
  constexpr int scale_bytes() const {
    return code == WeightCode::kBF16 ? 0 : code == WeightCode::kMxfp4 ? kPackedRows * kPackedK / 32 : 128;
  }
  constexpr int bytes() const { return scale_bytes() + kPackedK / line_k() * half_bytes(); }
  // Where its scales are; and row `line`'s line with element k of the matrix.
  constexpr int scales_at() const { return code == WeightCode::kFp8Both ? half_bytes() : 0; }
  constexpr int LineAt(int line, std::int64_t k) const {
    return (code == WeightCode::kFp8Both ? 0 : scale_bytes()) +
           static_cast<int>(k % kPackedK / line_k()) * half_bytes() + line * line_bytes();
  }
};

constexpr std::int64_t PackedTiles(std::int64_t rows) { return CeilDiv(rows, kPackedRows); }
constexpr std::int64_t PackedSteps(std::int64_t in) { return CeilDiv(in, kPackedK); }
constexpr std::int64_t PackedBytes(WeightCode code, std::int64_t rows, std::int64_t in) {
  return PackedTiles(rows) * PackedSteps(in) * PackedBlock{code}.bytes();
}

// A weight row's tile, and its line there.
struct PackedRow {
  std::int64_t tile;
  int line;
};
constexpr PackedRow PlaceOfRow(Packing packing, std::int64_t row, std::int64_t rows) {
  if (packing != Packing::kGateUp) return {row / kPackedRows, static_cast<int>(row % kPackedRows)};
  const std::int64_t f = rows / 2, feature = row % f;
  const int within = static_cast<int>(feature % 64);
  return {feature / 64, within / 8 * 16 + (row >= f ? 8 : 0) + within % 8};
}
// The byte of element k of line `line`, or of any line.
constexpr int Bf16Byte(int line, int k) { return (k / 8 ^ line % 8) * 16 + k % 8 * 2; }
constexpr int Fp8BothByte(int line, int k) { return (k / 16 ^ line % 8) * 16 + k % 16; }
constexpr int Fp8Byte(int k) { return k % 8 / 2 * 16 + k / 16 * 4 + k % 2 * 2 + k % 16 / 8; }

// Where a code's four bits are, lowest first, the sign last: in two words (eight bytes) that are a quarter of a line.
// Two elements that are multiplied together have the same places in the halves of a word; places are such that a shift
// or a rotation brings both where bf16 has them, sign in bit 15, magnitude in bits 8 to 6. Three pairs of four find
// such places in their own word; the fourth is in what is left of both.
struct Fp4Bits {
  int quarter;
  int bit[4];
};
constexpr Fp4Bits Fp4Place(int k) {
  constexpr int kOwn[3][4] = {{6, 7, 8, 15}, {12, 13, 14, 21}, {2, 3, 4, 11}};
  constexpr int kShared[2][4] = {{10, 41, 42, 49}, {0, 1, 32, 9}};
  const int pair = k % 32 / 8, word = k / 32;
  Fp4Bits place = {k % 8 / 2, {}};
  for (int i = 0; i < 4; ++i) {
    const int bit = pair < 3 ? kOwn[pair][i] + 32 * word : kShared[word][i];
    place.bit[i] = bit / 32 * 32 + (bit + k % 2 * 16) % 32;
  }
  return place;
}
// The code of element k < 64 of a line.
constexpr unsigned Fp4Code(const std::uint8_t* line, int k) {
  const Fp4Bits place = Fp4Place(k);
  unsigned code = 0;
  for (int i = 0; i < 4; ++i) code |= (line[place.quarter * 8 + place.bit[i] / 8] >> place.bit[i] % 8 & 1u) << i;
  return code;
}
// Which of a row's four scales is that of 32 of K: each line's are two bytes apart.
constexpr int Fp4ScaleByte(int group) { return group % 2 * 2 + group / 2; }

}  // namespace expertd::cuda
