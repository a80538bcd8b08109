#include "kernels/cuda/expert_sort.h"
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

constexpr const char* kTileNames[] = {"few", "some", "many", "many in place"};

void FusedTiles(Timer& timer, const Layer& l, const Weights& weights, std::int64_t n) {
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
  for (const cuda::FusedTileId tile :
       {cuda::FusedTileId::kFew, cuda::FusedTileId::kSome, cuda::FusedTileId::kMany, cuda::FusedTileId::kManyInPlace}) {
    const std::int64_t per_expert = cuda::CeilDiv(slots, hit);
    const bool many = cuda::ShapeOf(tile).blocks > 1;
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
    const cuda::FusedForwardLaunch launch = {.positions = slots,
                                             .experts = l.e,
                                             .d = l.d,
                                             .f = l.f,
                                             .tile = tile,
                                             .blocks = cuda::CurrentDevice()->multiprocessors,
                                             .offsets = offsets.data(),
                                             .sorted_slots = sorted.data(),
                                             .rows = gathers ? rows.data() : by_position.data(),
                                             .rows_divisor = static_cast<int>(l.k),
                                             .gate_up = weights.gate_up.data(),
                                             .down = weights.down.data(),
                                             .hidden = hidden.data(),
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
    timer.Report({.op = "fused tile",
                  .shape = std::string(l.name) + " " + kTileNames[static_cast<int>(tile)],
                  .rows = n,
                  .bytes = 6.0 * hit * l.f * l.d + 4.0 * n * l.d,
                  .flops = 6.0 * slots * l.f * l.d},
                 kReadBandwidth, [&](cuda::Stream stream) {
                   int error = cuda::LaunchExpertSort(sort, stream.handle);
                   if (error == 0 && !gathers) error = cuda::LaunchSpreadRows(spread, stream.handle);
                   if (error == 0) error = cuda::LaunchFusedForward(launch, stream.handle);
                   if (error == 0) error = cuda::LaunchGatherReduce(combine, stream.handle);
                   return cuda::FromCuda(error, "fused tile");
                 });
  }
}

}  // namespace

void RunFusedTileCells(Timer& timer, const std::vector<Layer>& layers) {
  for (const Layer& layer : layers) {
    const Weights weights(layer);
    for (const std::int64_t n : kRows) FusedTiles(timer, layer, weights, n);
  }
}

}  // namespace expertd::bench
