// Compiled with AVX-512 F, BW, DQ, VL, BF16, VBMI and AMX-TILE, AMX-BF16: bf16 rows go through tiles of 16 rows x 32 k
// against 32 k x 16 outputs (a unit of the panel layout is such a tile as it lies), the rest as in kernels_avx512bf16.
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/simd_avx512.h"

namespace expertd::cpu {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileK = 32;
constexpr int kPairRowBytes = 256;  // from a pair of k to the next in bf16 codes

// Operand of LDTILECFG. Tiles 0-3: sums, 4-5: rows, 6-7: weights.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// What was written to `memory` is there for the next tile instruction: GCC 12's intrinsics do not tell the compiler
// that they read memory, and the stores would be dropped or moved.
EXPERTD_INLINE void Publish(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

// For row tiles of `upper` and `lower` rows; lower may be 0, its tiles are then not used.
void Configure(int upper, int lower) {
  TileConfig config;
  const int rows[8] = {upper, upper, lower, lower, upper, lower, kTileK / 2, kTileK / 2};
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = static_cast<std::uint8_t>(rows[tile]);
    config.row_bytes[tile] = rows[tile] == 0 ? 0 : 64;
  }
  Publish(&config);
  _tile_loadconfig(&config);
}

// Sums += rows . weights over a group, for one or two row tiles and two units. `fetch`: the codes come from memory.
template <bool kTwo>
EXPERTD_INLINE void Multiply(const Group& group, const std::byte* codes, bool fetch) {
  const std::byte* lower = group.rows + kTileRows * group.row_pitch;
  for (int step = 0; step < group.pairs * 2 / kTileK; ++step) {
    for (int pair = 0; fetch && pair < kTileK / 2; ++pair) {
      const std::byte* ahead = codes + (step * kTileK / 2 + pair + kPrefetchPairs) * kPairRowBytes;
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(ahead) + 64, _MM_HINT_T0);
    }
    _tile_loadd(6, codes + step * kTileK / 2 * kPairRowBytes, kPairRowBytes);
    _tile_loadd(7, codes + step * kTileK / 2 * kPairRowBytes + 64, kPairRowBytes);
    _tile_loadd(4, group.rows + step * kTileK * 2, group.row_pitch);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwo) {
      _tile_loadd(5, lower + step * kTileK * 2, group.row_pitch);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

// Sums of `rows` rows and two units, in `sums` [rows, 32], times the units' scales into C.
void AddScaled(const Group& group, const float* sums, int rows, int unit) {
  for (int half = 0; half < 2; ++half) {
    const __m512 scale = ScaleOf<Avx512>(group.scaled, group.scales, unit + half, 0);
    for (int m = 0; m < rows; ++m) {
      float* c = group.c + m * group.c_pitch + (unit + half) * kUnitOuts;
      Avx512::Store(c, Avx512::Fma(Avx512::Load(sums + m * 32 + half * 16), scale, Avx512::Load(c)));
    }
  }
}

// One group for one or two row tiles. Without scales the tiles go on summing from C.
template <bool kTwo>
void RowTiles(const Group& group, int rows, bool fetch) {
  constexpr int kUnitsAtATime = 2;
  for (int unit = 0; unit < kPanelUnits; unit += kUnitsAtATime) {
    alignas(64) float sums[2 * kTileRows * 32];
    const bool scaled = group.scales != nullptr;
    float* c = scaled ? sums : group.c + unit * kUnitOuts;
    const std::int64_t pitch = (scaled ? 32 : group.c_pitch) * static_cast<std::int64_t>(sizeof(float));
    float* lower = c + kTileRows * (scaled ? 32 : group.c_pitch);
    if (scaled) {
      _tile_zero(0);
      _tile_zero(1);
      if constexpr (kTwo) {
        _tile_zero(2);
        _tile_zero(3);
      }
    } else {
      _tile_loadd(0, c, pitch);
      _tile_loadd(1, c + kUnitOuts, pitch);
      if constexpr (kTwo) {
        _tile_loadd(2, lower, pitch);
        _tile_loadd(3, lower + kUnitOuts, pitch);
      }
    }
    Multiply<kTwo>(group, group.codes + unit * 64, fetch);
    _tile_stored(0, c, pitch);
    _tile_stored(1, c + kUnitOuts, pitch);
    if constexpr (kTwo) {
      _tile_stored(2, lower, pitch);
      _tile_stored(3, lower + kUnitOuts, pitch);
    }
    if (scaled) AddScaled(group, sums, rows, unit);
  }
}

// All groups of a panel, for a range of rows in equal pairs of row tiles (upper, lower).
template <PackedFormat kFormat>
void TiledRows(const PanelArgs& args, std::int64_t first, std::int64_t end, int upper, int lower) {
  constexpr FormatLayout kLayout = kFormatLayout[static_cast<int>(kFormat)];
  // Unscaled sums go on from group to group, so a longer group only saves loading and storing them.
  constexpr int kGroupK = kLayout.scale_bytes == 0 ? 512 : kLayout.group_k;
  alignas(64) std::byte decoded[kLayout.group_k / 2 * kPairRowBytes];
  Configure(upper, lower);
  Group group = {.scaled = kFormat, .row_pitch = args.row_pitch, .c_pitch = args.c_pitch};
  const std::byte* record = args.panel;
  for (std::int64_t k0 = 0; k0 < args.k; k0 += kGroupK) {
    group.pairs = static_cast<int>(args.k - k0 < kGroupK ? args.k - k0 : kGroupK) / 2;
    group.scales = kLayout.scale_bytes > 0 ? record : nullptr;
    group.codes = record + kLayout.scale_bytes;
    record = group.codes + group.pairs * kLayout.pair_bytes;
    if constexpr (kFormat != PackedFormat::kBF16) {
      DecodeGroup<Avx512, kFormat>(group.codes, group.pairs, decoded);
      Publish(decoded);
      group.codes = decoded;
    }
    for (std::int64_t row = first; row < end; row += upper + lower) {
      group.rows = args.rows + row * args.row_pitch + k0 * 2;
      group.c = args.c + row * args.c_pitch;
      const bool fetch = kFormat == PackedFormat::kBF16 && row == first;
      lower > 0 ? RowTiles<true>(group, upper + lower, fetch) : RowTiles<false>(group, upper, fetch);
    }
  }
  _tile_release();
}

template <PackedFormat kFormat>
void AmxPanel(const PanelArgs& args) {
  const std::int64_t whole = args.m / (2 * kTileRows) * (2 * kTileRows);
  const int rest = static_cast<int>(args.m - whole);
  if (whole > 0) TiledRows<kFormat>(args, 0, whole, kTileRows, kTileRows);
  if (rest > kTileRows) {
    TiledRows<kFormat>(args, whole, args.m, kTileRows, rest - kTileRows);
  } else if (rest > 0) {
    TiledRows<kFormat>(args, whole, args.m, rest, 0);
  }
}

}  // namespace

const IsaKernels kAmxKernels = {
    .f32_rows = {Panel<Avx512, PackedFormat::kBF16, false>, Panel<Avx512, PackedFormat::kF16, false>,
                 Panel<Avx512, PackedFormat::kF32, false>, Panel<Avx512, PackedFormat::kFp8, false>,
                 Panel<Avx512, PackedFormat::kMxfp4, false>},
    .bf16_rows = {AmxPanel<PackedFormat::kBF16>, nullptr, nullptr, AmxPanel<PackedFormat::kFp8>,
                  AmxPanel<PackedFormat::kMxfp4>},
    .activate = Activate<Avx512>,
    .combine = Combine<Avx512>,
    .convert = Convert<Avx512>,
};

}  // namespace expertd::cpu
