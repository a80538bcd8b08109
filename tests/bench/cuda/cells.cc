#include "tests/bench/cuda/cells.h"

#include <algorithm>
#include <numeric>

#include "kernels/cuda/engine/batched_rows.h"
#include "kernels/cuda/host.h"
#include "tests/gpu/layer_maps.h"
#include "tests/gpu/routed_ids.h"
#include "tests/support/random.h"

namespace expertd::bench {
namespace {

using testing::DeviceArray;
using testing::DeviceWorkspace;

std::string Times(std::initializer_list<std::int64_t> sizes) {
  std::string text;
  for (const std::int64_t size : sizes) text += (text.empty() ? "" : " x ") + std::to_string(size);
  return text;
}

DeviceArray<float> RandomFloats(std::int64_t count) {
  testing::Random random(2);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = random.Normal();
  return DeviceArray<float>(values);
}

const RoutingRule kSoftmax = {.renormalise = Renormalise::kSumPlusEps};
const RoutingRule kDeepseekV3 = {.score = Score::kSigmoid,
                                 .correction_bias = true,
                                 .group_score = GroupScore::kTop2Sum,
                                 .n_group = 8,
                                 .topk_group = 4,
                                 .renormalise = Renormalise::kSumPlusEps,
                                 .renormalise_eps = 1e-20f,
                                 .scale = 2.5f};

void Topk(Timer& timer, const char* name, const RoutingRule& rule, std::int64_t n, std::int64_t e) {
  const DeviceArray<float> logits = RandomFloats(n * e), bias = RandomFloats(e), weights(n * 8);
  const DeviceArray<std::int32_t> ids(n * 8);
  const FusedTopkRoutingArgs args = {.n = n,
                                     .e = e,
                                     .k = 8,
                                     .rule = rule,
                                     .logits = logits.data(),
                                     .correction_bias = bias.data(),
                                     .weights = weights.data(),
                                     .ids = ids.data()};
  Cell cell = {.op = "fused_topk_routing", .shape = std::string(name) + " " + Times({n, e}) + " top 8", .rows = n};
  cell.bytes = static_cast<double>(n) * (e * 4 + 64);
  timer.Report(cell, kReadBandwidth, [&](cuda::Stream stream) { return cuda::FusedTopkRouting(args, stream); });
}

void Align(Timer& timer, std::int64_t n, std::int64_t e) {
  const std::int64_t slots = n * 8, padded = PaddedSlots(slots, e, 64);
  const DeviceArray<std::int32_t> ids(testing::RoutedIds(n, e, 8)), counts(e), offsets(e + 1), sorted(padded);
  const DeviceArray<std::int32_t> experts(padded / 64);
  const MoeAlignBlockSizeArgs args = {.slots = slots,
                                      .e = e,
                                      .block = 64,
                                      .ids = ids.data(),
                                      .counts = counts.data(),
                                      .offsets = offsets.data(),
                                      .sorted_slots = sorted.data(),
                                      .block_experts = experts.data()};
  const DeviceWorkspace workspace = DeviceWorkspace::For(args);
  timer.Report({.op = "moe_align_block_size", .shape = Times({n, 8, e}), .rows = n, .bytes = 4.0 * (slots + padded)},
               kCopyBandwidth, [&](cuda::Stream stream) { return cuda::MoeAlignBlockSize(args, workspace, stream); });
}

// The maps of a layer, for kernels that pad nothing.
void Maps(Timer& timer, std::int64_t n, std::int64_t e) {
  const testing::LayerMaps maps(testing::RoutedIds(n, e, 8), e);
  timer.Report(
      {.op = "maps of a layer", .shape = Times({n, 8, e}), .rows = n, .bytes = 12.0 * 8 * n}, kCopyBandwidth,
      [&](cuda::Stream stream) { return cuda::FromCuda(cuda::LaunchExpertSort(maps.sort, stream.handle), "maps"); });
}

// The engine's way into the batched layout, by destination: whole rows in order, each read as often as it is wanted.
// Beside fused_routing_scatter, which goes by source and sorts first.
void ToBatched(Timer& timer, std::int64_t n, std::int64_t e, std::int64_t k, std::int64_t d) {
  const std::vector<std::int32_t> ids = testing::RoutedIds(n, e, k);
  std::vector<std::int32_t> ends(static_cast<std::size_t>(e + 1)), sorted(ids.size());
  for (const std::int32_t id : ids) ++ends[id + 1];
  const std::int64_t most = *std::max_element(ends.begin(), ends.end());
  std::partial_sum(ends.begin(), ends.end(), ends.begin());
  const DeviceArray<std::int32_t> offsets(ends), starts(e + 1);
  for (std::size_t slot = 0; slot < ids.size(); ++slot) sorted[ends[ids[slot]]++] = static_cast<std::int32_t>(slot);
  const DeviceArray<std::int32_t> sorted_slots(sorted);
  const DeviceArray<std::byte> rows = RandomBf16(n * d * 2, 1.0f), batched(e * most * d * 2);
  const cuda::ToBatchedLaunch launch = {.part = {.experts = e, .rows = most, .d = d, .offsets = offsets.data()},
                                        .sorted_slots = sorted_slots.data(),
                                        .x = rows.data(),
                                        .rows_divisor = k,
                                        .batched = batched.data(),
                                        .batch_offsets = starts.data()};
  timer.Report(
      {.op = "rows to experts (engine)", .shape = Times({e, k, d}), .rows = n, .bytes = 2.0 * d * (n + e * most)},
      kCopyBandwidth, [&](cuda::Stream stream) {
        return cuda::FromCuda(cuda::LaunchToBatched(launch, stream.handle), "rows to experts");
      });
}

// The six ops that move rows, on a layer of E experts, K of them a row, D, F.
void Rows(Timer& timer, std::int64_t n, std::int64_t e, std::int64_t k, std::int64_t d, std::int64_t f) {
  const std::int64_t slots = n * k;
  const std::vector<std::int32_t> host_ids = testing::RoutedIds(n, e, k);
  std::vector<std::int32_t> held(static_cast<std::size_t>(e));
  for (const std::int32_t id : host_ids) ++held[id];
  const std::int64_t max_tokens = *std::max_element(held.begin(), held.end());
  const double row = 2.0 * d, all_slots = row * slots, all_rows = row * n, batched_bytes = row * e * max_tokens;

  const DeviceArray<std::int32_t> ids(host_ids), counts(e), overflow(1), positions(slots), source(slots);
  const DeviceArray<float> weights = RandomFloats(slots), grad_weights(slots);
  const DeviceArray<std::byte> rows = RandomBf16(n * d * 2, 1.0f), out(n * d * 2), packed(slots * (d + 8) * 2);
  const DeviceArray<std::byte> batched = RandomBf16(e * max_tokens * d * 2, 1.0f);
  const std::string shape = Times({e, k, d, f});

  const DeviceArray<std::byte> gate_up = RandomBf16(slots * 2 * f * 2, 1.0f), hidden = RandomBf16(slots * f * 2, 1.0f);
  const DeviceArray<std::byte> grad_gate_up(slots * 2 * f * 2);
  const ActivationForwardArgs forward = {.m = slots, .f = f, .in = gate_up.data(), .out = hidden.data()};
  timer.Report({.op = "activation_forward", .shape = shape, .rows = n, .bytes = 6.0 * slots * f}, kCopyBandwidth,
               [&](cuda::Stream stream) { return cuda::ActivationForward(forward, stream); });
  const ActivationBackwardArgs backward = {
      .m = slots, .f = f, .grad_out = hidden.data(), .in = gate_up.data(), .grad_in = grad_gate_up.data()};
  timer.Report({.op = "activation_backward", .shape = shape, .rows = n, .bytes = 10.0 * slots * f}, kCopyBandwidth,
               [&](cuda::Stream stream) { return cuda::ActivationBackward(backward, stream); });

  FusedRoutingScatterArgs scatter = {.n = n, .d = d, .e = e, .k = k, .max_tokens = max_tokens};
  scatter.rows = rows.data(), scatter.ids = ids.data(), scatter.batched = batched.data();
  scatter.slot_pos = positions.data(), scatter.counts = counts.data(), scatter.overflow = overflow.data();
  const DeviceWorkspace scatter_workspace = DeviceWorkspace::For(scatter);
  timer.Report({.op = "fused_routing_scatter", .shape = shape, .rows = n, .bytes = all_rows + batched_bytes},
               kCopyBandwidth,
               [&](cuda::Stream stream) { return cuda::FusedRoutingScatter(scatter, scatter_workspace, stream); });

  const FusedGatherReduceArgs gather = {.n = n,
                                        .d = d,
                                        .k = k,
                                        .r = e * max_tokens,
                                        .expert_out = batched.data(),
                                        .slot_row = positions.data(),
                                        .weights = weights.data(),
                                        .out = out.data()};
  timer.Report({.op = "fused_gather_reduce", .shape = shape, .rows = n, .bytes = all_slots + all_rows}, kCopyBandwidth,
               [&](cuda::Stream stream) { return cuda::FusedGatherReduce(gather, stream); });

  const FusedRoutingWeightGradArgs dot = {.n = n,
                                          .d = d,
                                          .k = k,
                                          .r = e * max_tokens,
                                          .expert_out = batched.data(),
                                          .grad_out = rows.data(),
                                          .slot_row = positions.data(),
                                          .grad_weights = grad_weights.data()};
  timer.Report({.op = "fused_routing_weight_grad", .shape = shape, .rows = n, .bytes = all_slots + all_rows},
               kCopyBandwidth, [&](cuda::Stream stream) { return cuda::FusedRoutingWeightGrad(dot, stream); });

  const FusedWeightedScatterArgs spread = {.n = n,
                                           .d = d,
                                           .k = k,
                                           .r = e * max_tokens,
                                           .grad_out = rows.data(),
                                           .slot_row = positions.data(),
                                           .weights = weights.data(),
                                           .grad_expert = batched.data()};
  const DeviceWorkspace spread_workspace = DeviceWorkspace::For(spread);
  timer.Report({.op = "fused_weighted_scatter", .shape = shape, .rows = n, .bytes = all_rows + batched_bytes},
               kCopyBandwidth,
               [&](cuda::Stream stream) { return cuda::FusedWeightedScatter(spread, spread_workspace, stream); });

  FusedDispatchPackArgs pack = {.n = n, .d = d, .e = e, .k = k, .shards = 8, .rows = rows.data(), .ids = ids.data()};
  pack.packed = packed.data(), pack.source = source.data(), pack.counts = counts.data();
  const DeviceWorkspace pack_workspace = DeviceWorkspace::For(pack);
  timer.Report({.op = "fused_dispatch_pack", .shape = shape, .rows = n, .bytes = all_rows + all_slots + 16.0 * slots},
               kCopyBandwidth,
               [&](cuda::Stream stream) { return cuda::FusedDispatchPack(pack, pack_workspace, stream); });
}

}  // namespace

void RunRoutingCells(Timer& timer) {
  for (const std::int64_t n : {1, 8, 64}) Topk(timer, "softmax", kSoftmax, n, 256);
  for (const std::int64_t n : {4096, 16384}) Topk(timer, "softmax", kSoftmax, n, 128);
  for (const std::int64_t n : {1, 8, 64, 4096, 16384}) Topk(timer, "deepseek_v3", kDeepseekV3, n, 256);
  for (const std::int64_t n : {4096, 16384}) Topk(timer, "deepseek_v3", kDeepseekV3, n, 128);
  for (const std::int64_t n : {1, 128, 512, 1024, 8192}) Align(timer, n, 256);
  for (const std::int64_t n : {1, 8, 32, 128, 512, 2048, 8192}) Maps(timer, n, 128);
}

void RunRowCells(Timer& timer) {
  for (const std::int64_t n : {1, 32, 512, 8192}) Rows(timer, n, 128, 8, 2048, 768);
  Rows(timer, 32, 256, 8, 7168, 2048);
  Rows(timer, 8192, 256, 8, 7168, 2048);
  ToBatched(timer, 8192, 128, 8, 2048);
  ToBatched(timer, 8192, 256, 8, 7168);
}

}  // namespace expertd::bench
