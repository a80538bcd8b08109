#include <algorithm>
#include <array>

#include "kernels/cuda/engine/weight_packing.h"
#include "kernels/cuda/expert_sort.h"
#include "kernels/cuda/hopper/fp8_rows.h"
#include "kernels/cuda/hopper/fused_forward.h"
#include "kernels/cuda/host.h"
#include "kernels/cuda/row_ops.h"
#include "tests/bench/cuda/cells.h"
#include "tests/bench/cuda/layers.h"
#include "tests/gpu/routed_ids.h"
#include "tests/support/random.h"

namespace expertd::bench {
namespace {

using testing::DeviceArray;

constexpr const char* kTileNames[] = {"few",           "some",       "many",         "many in place",
                                      "few fp8",       "some fp8",   "many fp8",     "few mxfp4",
                                      "some mxfp4",    "many mxfp4", "few fp8 rows", "some fp8 rows",
                                      "many fp8 rows", "stream",     "stream fp8",   "stream mxfp4"};

// A layer's weights on the device, and the bytes of one expert's.
struct FusedWeights {
  cuda::WeightCode code;
  bool packed;
  const void* gate_up;
  const void* down;
  double expert_bytes;
};

void FusedTiles(Timer& timer, const Layer& l, const FusedWeights& weights, std::int64_t n) {
  const std::int64_t slots = n * l.k;
  const std::vector<std::int32_t> host_ids = testing::RoutedIds(n, l.e, l.k);
  const std::int64_t hit = testing::ExpertsHit(host_ids);
  std::vector<float> host_weights(host_ids.size());
  testing::Random random(3);
  for (float& weight : host_weights) weight = static_cast<float>(random.Uniform());
  const DeviceArray<std::int32_t> ids(host_ids), counts(l.e), offsets(l.e + 1), sorted(slots), positions(slots);
  const DeviceArray<float> slot_weights(host_weights);
  const DeviceArray<std::byte> rows = RandomBf16(n * l.d * 2, 1.0f), out(n * l.d * 2), hidden(slots * l.f * 2),
                               results(slots * l.d * 2);
  const DeviceArray<std::byte> by_position(slots * l.d * 2);
  const DeviceArray<float> row_scales(slots * cuda::PackedSteps(l.d)), hidden_scales(slots * cuda::PackedSteps(l.f));
  for (int id = 0; id < static_cast<int>(std::size(cuda::kFusedTiles)); ++id) {
    const auto tile = static_cast<cuda::FusedTileId>(id);
    if (cuda::ShapeOf(tile).weights_code != weights.code) continue;
    const std::int64_t per_expert = cuda::CeilDiv(slots, hit);
    if (cuda::ShapeOf(tile).streams() && slots > 64) continue;
    const bool many = cuda::ShapeOf(tile).tokens > 64;
    if (!many && per_expert > cuda::ShapeOf(tile).tokens * 2) continue;
    if (many && per_expert < 32) continue;
    const std::int64_t counter_count = cuda::FusedCounters(tile, slots, l.e);
    const DeviceArray<std::int32_t> counters(counter_count);
    cuda::Scratch sizes;
    cuda::PlanSort(slots, l.e, sizes);
    const DeviceArray<std::byte> scratch_memory(sizes.used() + 256);
    cuda::Scratch scratch(scratch_memory.data());
    cuda::ExpertSortLaunch sort = cuda::PlanSort(slots, l.e, scratch);
    sort.ids = ids.data(), sort.counts = counts.data(), sort.offsets = offsets.data();
    sort.sorted_slots = sorted.data(), sort.positions = positions.data();
    sort.cleared = counters.data(), sort.cleared_count = counter_count;
    const bool gathers = cuda::ShapeOf(tile).gathers;
    const cuda::SpreadRowsLaunch spread = {.n = n,
                                           .d = l.d,
                                           .k = l.k,
                                           .vectorised = true,
                                           .from = rows.data(),
                                           .slot_row = positions.data(),
                                           .to = by_position.data()};
    const bool fp8_rows = cuda::ShapeOf(tile).fp8_rows();
    const cuda::QuantiseRowsLaunch quantise = {
        .n = n, .d = l.d, .from = rows.data(), .codes = by_position.data(), .scales = row_scales.data()};
    const cuda::FusedForwardLaunch launch = {.positions = slots,
                                             .experts = l.e,
                                             .d = l.d,
                                             .f = l.f,
                                             .weights = weights.code,
                                             .tile = tile,
                                             .blocks = cuda::CurrentDevice()->multiprocessors,
                                             .tokens = cuda::UnitTokens(n),
                                             .offsets = offsets.data(),
                                             .sorted_slots = sorted.data(),
                                             .rows = gathers && !fp8_rows ? rows.data() : by_position.data(),
                                             .rows_divisor = static_cast<int>(l.k),
                                             .row_scales = row_scales.data(),
                                             .row_scale_pitch = n,
                                             .packed = weights.packed,
                                             .gate_up = weights.gate_up,
                                             .down = weights.down,
                                             .hidden = hidden.data(),
                                             .hidden_scales = hidden_scales.data(),
                                             .slots = results.data(),
                                             .counters = counters.data()};
    const cuda::GatherReduceLaunch combine = {.n = n,
                                              .d = l.d,
                                              .k = l.k,
                                              .vectorised = true,
                                              .expert_out = results.data(),
                                              .slot_row = positions.data(),
                                              .weights = slot_weights.data(),
                                              .out = out.data(),
                                              .early = true};
    timer.Report(
        {.op = "fused tile",
         .shape = std::string(l.name) + " " + kTileNames[static_cast<int>(tile)] + (weights.packed ? " packed" : ""),
         .rows = n,
         .bytes = weights.expert_bytes * hit + 4.0 * n * l.d,
         .flops = 6.0 * slots * l.f * l.d},
        kReadBandwidth, [&](cuda::Stream stream) {
          int error = cuda::LaunchExpertSort(sort, stream.handle);
          if (error == 0 && fp8_rows) error = cuda::LaunchQuantiseRows(quantise, stream.handle);
          if (error == 0 && !gathers && !fp8_rows) error = cuda::LaunchSpreadRows(spread, stream.handle);
          if (error == 0) error = cuda::LaunchFusedForward(launch, stream.handle);
          if (error == 0) error = cuda::LaunchGatherReduce(combine, stream.handle);
          return cuda::FromCuda(error, "fused tile");
        });
  }
}

// One expert's random codes in a checkpoint's form, packed, and repeated for every expert.
DeviceArray<std::byte> PackedCodes(cuda::WeightCode code, cuda::Packing packing, std::int64_t experts,
                                   std::int64_t rows, std::int64_t in) {
  testing::Random random(7);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * in)), group_scales(codes.size() / 32);
  for (std::uint8_t& byte : codes) byte = static_cast<std::uint8_t>(random.Uniform() * 256) & 0xbf;  // below 2
  for (std::uint8_t& scale : group_scales) scale = static_cast<std::uint8_t>(118 + random.Uniform() * 4);
  const std::vector<float> block_scales(static_cast<std::size_t>(cuda::CeilDiv(rows, 128) * cuda::CeilDiv(in, 128)),
                                        0.02f);
  const bool fp8 = code != cuda::WeightCode::kMxfp4, paired = packing == cuda::Packing::kGateUp;
  const WeightView view = {.data = codes.data(),
                           .dtype = fp8 ? DType::kF8E4M3 : DType::kF4E2M1,
                           .out = paired ? rows / 2 : rows,
                           .in = in,
                           .out_stride = in,
                           .block_scales = block_scales.data(),
                           .block_scale_stride = cuda::CeilDiv(in, 128),
                           .group_scales = group_scales.data(),
                           .group_scale_stride = in / 32};
  WeightView up = view;
  up.data = codes.data() + rows / 2 * in / (fp8 ? 1 : 2);
  const std::array<WeightView, 2> views = {view, up};
  const std::int64_t steps = cuda::PackedSteps(in), bytes = cuda::PackedBytes(code, rows, in);
  std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
  for (std::int64_t i = 0; i < cuda::PackedTiles(rows) * steps; ++i) {
    cuda::PackBlock(code, {views.data(), paired ? 2u : 1u}, packing, i / steps, i % steps,
                    packed.data() + i * cuda::PackedBlock{code}.bytes());
  }
  const DeviceArray<std::byte> one(packed);
  DeviceArray<std::byte> all(experts * bytes);
  for (std::int64_t e = 0; e < experts; ++e) {
    EXPERTD_CHECK_CUDA(cudaMemcpy(all.data() + e * bytes, one.data(), bytes, cudaMemcpyDeviceToDevice));
  }
  return all;
}

void CodeTiles(Timer& timer, const Layer& l, cuda::WeightCode code) {
  const DeviceArray<std::byte> gate_up = PackedCodes(code, cuda::Packing::kGateUp, l.e, 2 * l.f, l.d),
                               down = PackedCodes(code, cuda::Packing::kRows, l.e, l.d, l.f);
  const auto expert_bytes =
      static_cast<double>(cuda::PackedBytes(code, 2 * l.f, l.d) + cuda::PackedBytes(code, l.d, l.f));
  for (const std::int64_t n : kRows) FusedTiles(timer, l, {code, true, gate_up.data(), down.data(), expert_bytes}, n);
}

constexpr Layer kFp8Layers[] = {{"qwen3-30b fp8", 128, 8, 2048, 768}, {"deepseek-v3 fp8", 256, 8, 7168, 2048}};
constexpr Layer kMxfp4Layers[] = {{"gpt-oss-120b", 128, 4, 2880, 2880}, {"gpt-oss-20b", 32, 4, 2880, 2880}};

}  // namespace

void RunCodeTileCells(Timer& timer) {
  for (const Layer& layer : kFp8Layers) CodeTiles(timer, layer, cuda::WeightCode::kFp8);
  for (const Layer& layer : kMxfp4Layers) CodeTiles(timer, layer, cuda::WeightCode::kMxfp4);
}

void RunFp8RowCells(Timer& timer) {
  for (const Layer& layer : kFp8Layers) CodeTiles(timer, layer, cuda::WeightCode::kFp8Both);
}

void RunFusedTileCells(Timer& timer, const std::vector<Layer>& layers) {
  for (const Layer& layer : layers) {
    const Weights weights(layer);
    // Random numbers stay random numbers when they are read as packed.
    for (const bool packed : {false, true}) {
      const FusedWeights fused = {cuda::WeightCode::kBF16, packed, weights.gate_up.data(), weights.down.data(),
                                  6.0 * static_cast<double>(layer.f * layer.d)};
      for (const std::int64_t n : kRows) FusedTiles(timer, layer, fused, n);
    }
  }
}

}  // namespace expertd::bench
