// What the fused kernel makes of fp8 rows, step by step: codes of the rows, codes of the first product's results, and
// the second product of those very codes.
#include <algorithm>
#include <array>
#include <cstdio>
#include <numeric>

#include "kernels/cuda/engine/weight_packing.h"
#include "kernels/cuda/enqueue.h"
#include "kernels/cuda/hopper/fp8_rows.h"
#include "kernels/cuda/host.h"
#include "kernels/reference/fp8_rows.h"
#include "kernels/reference/loops.h"
#include "tests/gpu/gpu_test.h"
#include "tests/support/random_layer.h"
#include "tests/support/rows.h"

namespace expertd::testing {
namespace {

using cuda::Packing;
using cuda::WeightCode;

DeviceArray<std::byte> Packed(absl::Span<const WeightView> views, Packing packing) {
  const std::int64_t in = views[0].in, rows = static_cast<std::int64_t>(views.size()) * views[0].out;
  const std::int64_t steps = cuda::PackedSteps(in), bytes = cuda::PackedBlock{WeightCode::kFp8Both}.bytes();
  std::vector<std::byte> packed(static_cast<std::size_t>(cuda::PackedBytes(WeightCode::kFp8Both, rows, in)));
  for (std::int64_t i = 0; i < cuda::PackedTiles(rows) * steps; ++i) {
    cuda::PackBlock(WeightCode::kFp8Both, views, packing, i / steps, i % steps, packed.data() + i * bytes);
  }
  return DeviceArray<std::byte>(packed);
}

// n rows of e4m3 on the device.
struct Coded {
  std::int64_t n, width;
  DeviceArray<std::uint8_t> codes{n * cuda::Fp8RowBytes(width)};
  DeviceArray<float> scales{n * cuda::PackedSteps(width)};
  std::vector<double> Decoded() const {
    const std::vector<std::uint8_t> code = codes.Host();
    const std::vector<float> scale = scales.Host();
    std::vector<double> values;
    for (std::int64_t i = 0; i < n * width; ++i) {
      const std::int64_t row = i / width, column = i % width;
      values.push_back(F8E4M3ToF32(code[row * cuda::Fp8RowBytes(width) + column]) * scale[column / 128 * n + row]);
    }
    return values;
  }
};

double Dot(const WeightView& weights, std::int64_t row, const double* x) {
  double sum = 0;
  for (std::int64_t i = 0; i < weights.in; ++i) sum += weights.At(row, i) * x[i];
  return sum;
}

class Fp8CodesTest : public HopperGpuTest {};

TEST_F(Fp8CodesTest, EachStepIsTheReference) {
  constexpr std::int64_t kN = 33, kD = 576, kF = 704;
  LayerSpec spec = SimpleSpec(kD, /*num_experts=*/1, /*experts_per_token=*/1, kF);
  spec.expert_format = WeightFormat::kFp8Block128;
  const std::unique_ptr<LayerSource> source = MakeRandomLayer(spec);
  const ExpertWeights weights = source->expert(0);
  const Rows rows = Rows::Random(kN, kD, DType::kBF16, 5);
  const std::vector<std::byte> bytes(rows.row(0), rows.row(0) + kN * rows.row_bytes());
  std::vector<std::int32_t> slots(kN);
  std::iota(slots.begin(), slots.end(), 0);

  const DeviceArray<std::byte> x(bytes), gate_up = Packed(std::array{weights.gate, weights.up}, Packing::kGateUp),
                                         down = Packed(std::array{weights.down}, Packing::kRows), out(kN * kD * 2);
  const DeviceArray<std::int32_t> offsets(std::vector<std::int32_t>{0, kN}), sorted(slots),
      counters(std::vector<std::int32_t>(cuda::FusedCounters({kN, 1, kD, kF, WeightCode::kFp8Both})));
  const Coded coded{kN, kD}, hidden{kN, kF};
  const cuda::QuantiseRowsLaunch quantise = {
      .n = kN, .d = kD, .from = x.data(), .codes = coded.codes.data(), .scales = coded.scales.data()};
  ASSERT_EQ(cuda::LaunchQuantiseRows(quantise, nullptr), 0);
  EXPERTD_ASSERT_OK(cuda::EnqueueFusedForward({.positions = kN,
                                               .experts = 1,
                                               .d = kD,
                                               .f = kF,
                                               .weights = WeightCode::kFp8Both,
                                               .offsets = offsets.data(),
                                               .sorted_slots = sorted.data(),
                                               .rows = coded.codes.data(),
                                               .row_scales = coded.scales.data(),
                                               .row_scale_pitch = kN,
                                               .packed = true,
                                               .gate_up = gate_up.data(),
                                               .down = down.data(),
                                               .hidden = hidden.codes.data(),
                                               .hidden_scales = hidden.scales.data(),
                                               .slots = out.data(),
                                               .counters = counters.data()},
                                              {}));

  std::vector<double> want = rows.ToDoubles();
  reference::QuantiseFp8Rows(kD, want);
  EXPECT_EQ(coded.Decoded(), want);

  std::vector<double> want_hidden;
  for (std::int64_t i = 0; i < kN * kF; ++i) {
    const double* const row = &want[i / kF * kD];
    want_hidden.push_back(reference::GatedActivation{}(Dot(weights.gate, i % kF, row), Dot(weights.up, i % kF, row)));
  }
  reference::QuantiseFp8Rows(kF, want_hidden);
  const std::vector<double> got_hidden = hidden.Decoded();
  std::int64_t moved = 0;
  for (std::size_t i = 0; i < got_hidden.size(); ++i) moved += got_hidden[i] != want_hidden[i];
  std::printf("fp8 rows: %.2f %% of the first product's codes are not the reference's\n",
              100.0 * static_cast<double>(moved) / (kN * kF));
  EXPECT_LE(RelativeError(got_hidden, want_hidden), 1e-2);

  std::vector<double> want_out;
  for (std::int64_t i = 0; i < kN * kD; ++i) want_out.push_back(Dot(weights.down, i % kD, &got_hidden[i / kD * kF]));
  const HostArray got_out = Fetch(out, DType::kBF16);
  std::vector<double> got(want_out.size());
  for (std::size_t i = 0; i < got.size(); ++i) got[i] = got_out.in()[static_cast<std::int64_t>(i)];
  std::printf("fp8 rows: %.2e from the products of the same codes\n", RelativeError(got, want_out));
  EXPECT_LE(RelativeError(got, want_out), 5e-3);
}

}  // namespace
}  // namespace expertd::testing
