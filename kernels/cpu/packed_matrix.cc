#include "kernels/cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace expertd::cpu {
namespace {

// A run of `pairs` pairs of k starting at k0: the codes of one group.
struct Run {
  std::int64_t k0 = 0;
  std::int64_t k_end = 0;  // of the matrix: beyond it, zeros stay
  std::byte* codes = nullptr;
  std::int64_t pair_bytes = 0;
};

// Calls put(row of codes, output within the unit, k % 2, element) for every weight of a unit in the run.
template <class T, class Put>
void ForEach(const UnitSource& source, const Run& run, Put put) {
  const WeightView& w = *source.weights;
  const std::int64_t outs = std::min<std::int64_t>(kUnitOuts, w.out - source.first);
  for (std::int64_t o = 0; o < outs; ++o) {
    const T* from = static_cast<const T*>(w.data) + (source.first + o) * w.out_stride + run.k0 * w.in_stride;
    for (std::int64_t i = 0; i < run.k_end - run.k0; ++i) {
      put(run.codes + (i >> 1) * run.pair_bytes, o, i & 1, from[i * w.in_stride]);
    }
  }
}

template <class T>
void Store(std::byte* row, std::int64_t index, T value) {
  std::memcpy(row + index * static_cast<std::int64_t>(sizeof(T)), &value, sizeof(T));
}

void PackPairsOfOutputs(const UnitSource& source, const Run& run, int unit) {
  ForEach<std::uint16_t>(source, run, [unit](std::byte* row, std::int64_t o, std::int64_t odd, std::uint16_t value) {
    Store(row, unit * 32 + o * 2 + odd, value);
  });
}

template <class T>
void PackPairOfRows(const UnitSource& source, const Run& run, int unit) {
  ForEach<T>(source, run, [unit](std::byte* row, std::int64_t o, std::int64_t odd, T value) {
    Store(row, unit * 32 + odd * 16 + o, value);
  });
}

void PackFp8(const UnitSource& source, const Run& run, int unit) {
  ForEach<std::uint8_t>(source, run, [unit](std::byte* row, std::int64_t o, std::int64_t odd, std::uint8_t code) {
    Store(row, (unit / 2) * 64 + (o / 4) * 16 + (unit % 2) * 8 + (o % 4) * 2 + odd, code);
  });
}

void PackMxfp4(const UnitSource& source, const Run& run, int unit) {
  const WeightView& w = *source.weights;
  const std::int64_t outs = std::min<std::int64_t>(kUnitOuts, w.out - source.first);
  for (std::int64_t o = 0; o < outs; ++o) {
    for (std::int64_t k = run.k0; k < run.k_end; ++k) {
      const std::int64_t element = (source.first + o) * w.out_stride + k;
      const auto two = static_cast<const std::uint8_t*>(w.data)[element / 2];
      const unsigned code = element % 2 == 0 ? two & 15u : two >> 4;
      const std::int64_t i = k - run.k0;
      std::byte& to = run.codes[(i >> 1) * run.pair_bytes + (o * 2 + (i & 1)) * 2 + unit / 2];
      to |= static_cast<std::byte>(code << (4 * (unit % 2)));
    }
  }
}

void PackScales(const UnitSource& source, PackedFormat format, std::int64_t k0, int unit, std::byte* scales) {
  const WeightView& w = *source.weights;
  if (format == PackedFormat::kFp8) {
    Store(scales, unit,
          w.block_scales == nullptr ? 1.0f : w.block_scales[source.first / 128 * w.block_scale_stride + k0 / 128]);
    return;
  }
  const std::int64_t outs = std::min<std::int64_t>(kUnitOuts, w.out - source.first);
  for (std::int64_t o = 0; o < outs; ++o) {
    Store(scales, unit * kUnitOuts + o,
          w.group_scales == nullptr ? std::uint8_t{127}
                                    : w.group_scales[(source.first + o) * w.group_scale_stride + k0 / 32]);
  }
}

void PackCodes(const UnitSource& source, PackedFormat format, const Run& run, int unit) {
  switch (format) {
    case PackedFormat::kBF16:
      return PackPairsOfOutputs(source, run, unit);
    case PackedFormat::kF16:
      return PackPairOfRows<std::uint16_t>(source, run, unit);
    case PackedFormat::kF32:
      return PackPairOfRows<float>(source, run, unit);
    case PackedFormat::kFp8:
      return PackFp8(source, run, unit);
    case PackedFormat::kMxfp4:
      return PackMxfp4(source, run, unit);
  }
}

}  // namespace

absl::StatusOr<PackedFormat> PackedFormatOf(DType dtype, const char* what) {
  switch (dtype) {
    case DType::kBF16:
      return PackedFormat::kBF16;
    case DType::kF16:
      return PackedFormat::kF16;
    case DType::kF32:
      return PackedFormat::kF32;
    case DType::kF8E4M3:
      return PackedFormat::kFp8;
    case DType::kF4E2M1:
      return PackedFormat::kMxfp4;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": dtype ", DTypeName(dtype), " is none of bf16, f16, f32, f8_e4m3, f4_e2m1"));
  }
}

std::int64_t PackedMatrix::panel_bytes() const {
  const FormatLayout& layout = kFormatLayout[static_cast<int>(format)];
  const std::int64_t groups = RoundUp(k, layout.group_k) / layout.group_k;
  return groups * layout.scale_bytes + PaddedK(k) / 2 * layout.pair_bytes;
}

PanelSource PlainPanel(const WeightView& weights, const VectorView& bias, std::int64_t p) {
  PanelSource source;
  for (int u = 0; u < kPanelUnits; ++u) source.units[u] = {&weights, &bias, p * kPanelOuts + u * kUnitOuts};
  return source;
}

PanelSource GateUpPanel(const WeightView& gate, const VectorView& gate_bias, const WeightView& up,
                        const VectorView& up_bias, std::int64_t p) {
  PanelSource source;
  for (int u = 0; u < kPanelUnits; ++u) {
    const std::int64_t first = p * kPanelOuts / 2 + u / 2 * kUnitOuts;
    source.units[u] = u % 2 == 0 ? UnitSource{&gate, &gate_bias, first} : UnitSource{&up, &up_bias, first};
  }
  return source;
}

void PackPanel(const PanelSource& source, const PackedMatrix& matrix, std::int64_t p) {
  const FormatLayout& layout = kFormatLayout[static_cast<int>(matrix.format)];
  std::byte* record = matrix.panel(p);
  for (std::int64_t k0 = 0; k0 < matrix.k; k0 += layout.group_k) {
    const Run run = {.k0 = k0,
                     .k_end = std::min(matrix.k, k0 + layout.group_k),
                     .codes = record + layout.scale_bytes,
                     .pair_bytes = layout.pair_bytes};
    for (int unit = 0; unit < kPanelUnits; ++unit) {
      if (source.units[unit].first >= source.units[unit].weights->out) continue;
      if (layout.scale_bytes > 0) PackScales(source.units[unit], matrix.format, k0, unit, record);
      PackCodes(source.units[unit], matrix.format, run, unit);
    }
    record += layout.scale_bytes + layout.group_k / 2 * layout.pair_bytes;
  }
}

void PackBias(const PanelSource& source, float* bias) {
  for (int u = 0; u < kPanelUnits; ++u) {
    const UnitSource& unit = source.units[u];
    for (std::int64_t o = 0; o < kUnitOuts; ++o) {
      const bool there = !unit.bias->empty() && unit.first + o < unit.bias->size;
      bias[u * kUnitOuts + o] = there ? static_cast<float>(unit.bias->At(unit.first + o)) : 0.0f;
    }
  }
}

}  // namespace expertd::cpu
