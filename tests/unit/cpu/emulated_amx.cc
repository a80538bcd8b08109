// kernels_amx.cc once more, with the tile instructions computed in plain C++: what it does with tiles is then tested on
// processors that have AVX-512 BF16 and VBMI, but no AMX. Nothing here says anything about speed.
#include "tests/unit/cpu/emulated_amx.h"

#include <immintrin.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace expertd::cpu {
namespace {

// What LDTILECFG reads (Intel's Software Developer's Manual, volume 1, chapter 18).
struct Configuration {
  std::uint8_t palette, start_row, reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
struct Tile {
  alignas(64) std::uint8_t bytes[16][64];
};

thread_local Configuration configuration;  // palette 0: none
thread_local Tile tiles[8];

// What the instructions answer with a fault.
void Require(bool valid) {
  if (!valid) std::abort();
}

void RequireTile(int tile) {
  Require(configuration.palette == 1 && configuration.rows[tile] > 0 && configuration.row_bytes[tile] > 0);
}

float Bf16At(const std::uint8_t* bytes) {  // subnormal numbers count as zero
  std::uint16_t half;
  std::memcpy(&half, bytes, sizeof(half));
  const std::uint32_t bits = (half & 0x7f80) == 0 ? (half & 0x8000u) << 16 : static_cast<std::uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

void LoadConfig(const void* memory) {
  std::memcpy(&configuration, memory, sizeof(configuration));
  Require(configuration.palette == 1);
  for (int tile = 0; tile < 8; ++tile) Require(configuration.rows[tile] <= 16 && configuration.row_bytes[tile] <= 64);
  std::memset(tiles, 0, sizeof(tiles));
}

void Zero(int tile) {
  RequireTile(tile);
  tiles[tile] = {};
}

void Load(int tile, const void* base, std::int64_t stride) {
  Zero(tile);
  for (int row = 0; row < configuration.rows[tile]; ++row) {
    std::memcpy(tiles[tile].bytes[row], static_cast<const std::uint8_t*>(base) + row * stride,
                configuration.row_bytes[tile]);
  }
}

void Store(int tile, void* base, std::int64_t stride) {
  RequireTile(tile);
  for (int row = 0; row < configuration.rows[tile]; ++row) {
    std::memcpy(static_cast<std::uint8_t*>(base) + row * stride, tiles[tile].bytes[row], configuration.row_bytes[tile]);
  }
}

// to[m][n] += sum over pairs k of a[m][k] . b[k][n]; even and odd elements are summed apart.
void DotBf16(int to, int a, int b) {
  for (int tile : {to, a, b}) RequireTile(tile);
  const int pairs = configuration.row_bytes[a] / 4;
  Require(configuration.rows[to] == configuration.rows[a] && pairs == configuration.rows[b] &&
          configuration.row_bytes[to] == configuration.row_bytes[b]);
  for (int m = 0; m < configuration.rows[to]; ++m) {
    for (int n = 0; n < configuration.row_bytes[to] / 4; ++n) {
      float sums[2] = {};
      for (int k = 0; k < pairs; ++k) {
        for (int odd = 0; odd < 2; ++odd) {
          sums[odd] = std::fma(Bf16At(tiles[a].bytes[m] + k * 4 + odd * 2), Bf16At(tiles[b].bytes[k] + n * 4 + odd * 2),
                               sums[odd]);
        }
      }
      float sum;
      std::memcpy(&sum, tiles[to].bytes[m] + n * 4, sizeof(sum));
      sum += sums[0] + sums[1];
      std::memcpy(tiles[to].bytes[m] + n * 4, &sum, sizeof(sum));
    }
  }
}

void Release() { configuration = {}; }

}  // namespace
}  // namespace expertd::cpu

// <immintrin.h>, above, made macros of some of these.
#undef _tile_loadconfig
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_release
#define _tile_loadconfig LoadConfig
#define _tile_zero Zero
#define _tile_loadd Load
#define _tile_stored Store
#define _tile_dpbf16ps DotBf16
#define _tile_release Release
#define kAmxKernels kEmulatedAmxKernels
#include "kernels/cpu/kernels_amx.cc"
