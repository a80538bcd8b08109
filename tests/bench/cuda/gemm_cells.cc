#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <optional>

#include "kernels/cuda/batched_moe_forward.h"
#include "kernels/cuda/enqueue.h"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/host.h"
#include "kernels/cuda/moe_backward.h"
#include "tests/bench/cuda/cells.h"
#include "tests/bench/cuda/layers.h"
#include "tests/gpu/routed_ids.h"

namespace expertd::bench {
namespace {

using testing::DeviceArray;
using testing::DeviceWorkspace;

constexpr std::int64_t kMany = 8192;

void Forward(Timer& timer, const Layer& l, const Weights& weights, std::int64_t n) {
  const std::vector<std::int32_t> host_ids = testing::RoutedIds(n, l.e, l.k);
  const DeviceArray<std::int32_t> ids(host_ids);
  const DeviceArray<float> routing_weights = RandomRoutingWeights(n * l.k);
  const DeviceArray<std::byte> rows = RandomBf16(n * l.d * 2, 1.0f), out(n * l.d * 2);
  const FusedMoeForwardArgs args = {.n = n,
                                    .d = l.d,
                                    .e = l.e,
                                    .k = l.k,
                                    .f = l.f,
                                    .rows = rows.data(),
                                    .ids = ids.data(),
                                    .weights = routing_weights.data(),
                                    .gate_up = weights.gate_up.data(),
                                    .down = weights.down.data(),
                                    .out = out.data()};
  const DeviceWorkspace workspace = DeviceWorkspace::For(args);
  const std::int64_t hit = testing::ExpertsHit(host_ids);
  timer.Report({.op = "fused_moe_forward",
                .shape = std::string(l.name) + " hit " + std::to_string(hit),
                .rows = n,
                .bytes = 6.0 * hit * l.f * l.d + 4.0 * n * l.d,
                .flops = 6.0 * n * l.k * l.f * l.d},
               kReadBandwidth, [&](cuda::Stream stream) { return cuda::FusedMoeForward(args, workspace, stream); });
}

// The first product of the layer as the op does it, or with a tile of choice: what ChooseGemmTile is made from.
void GroupedGemm(Timer& timer, const Layer& l, const Weights& weights, std::int64_t n,
                 std::optional<cuda::GemmTile> tile) {
  const std::int64_t slots = n * l.k;
  std::vector<std::int32_t> ids = testing::RoutedIds(n, l.e, l.k), gather(ids.size()), offsets(l.e + 1);
  std::iota(gather.begin(), gather.end(), 0);
  std::stable_sort(gather.begin(), gather.end(), [&](auto a, auto b) { return ids[a] < ids[b]; });
  for (const std::int32_t id : ids) ++offsets[id + 1];
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  const DeviceArray<std::int32_t> device_gather(gather), device_offsets(offsets);
  const DeviceArray<std::byte> rows = RandomBf16(n * l.d * 2, 1.0f), out(slots * 2 * l.f * 2);
  cuda::GroupedGemmLaunch launch = {.positions = slots, .experts = l.e, .in = l.d, .out_features = 2 * l.f};
  std::string how = "op";
  if (tile.has_value()) {
    launch.tile = *tile;
    launch.blocks = cuda::GemmBlocks(*tile, slots, l.e, 2 * l.f, *cuda::CurrentDevice());
    how = "tile " + std::to_string(cuda::ShapeOf(*tile).weights) + "x" + std::to_string(cuda::ShapeOf(*tile).tokens);
  }
  launch.x = rows.data(), launch.gather = device_gather.data(), launch.rows_divisor = static_cast<int>(l.k);
  launch.offsets = device_offsets.data(), launch.w = weights.gate_up.data(), launch.out = out.data();
  timer.Report({.op = "moe_grouped_gemm",
                .shape = std::string(l.name) + " " + how,
                .rows = n,
                .bytes = 4.0 * testing::ExpertsHit(ids) * l.f * l.d + 2.0 * n * l.d + 4.0 * slots * l.f,
                .flops = 4.0 * slots * l.f * l.d},
               kReadBandwidth, [&](cuda::Stream stream) {
                 if (!tile.has_value()) return cuda::EnqueueGroupedGemm(launch, stream);
                 return cuda::FromCuda(cuda::LaunchGroupedGemm(launch, stream.handle), "moe_grouped_gemm");
               });
}

// Of gate and up at N = kMany, in f32.
void WeightGrad(Timer& timer, const Layer& l) {
  const std::int64_t slots = kMany * l.k;
  std::vector<std::int32_t> offsets(l.e + 1);
  for (const std::int32_t id : testing::RoutedIds(kMany, l.e, l.k)) ++offsets[id + 1];
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  const DeviceArray<std::int32_t> device_offsets(offsets);
  const DeviceArray<std::byte> grad_out = RandomBf16(slots * 2 * l.f * 2, 1.0f), x = RandomBf16(slots * l.d * 2, 1.0f);
  const DeviceArray<std::byte> grad_w(l.e * 2 * l.f * l.d * 4);
  const MoeWeightGradArgs args = {.positions = slots,
                                  .e = l.e,
                                  .in = l.d,
                                  .out_features = 2 * l.f,
                                  .grad_out = grad_out.data(),
                                  .x = x.data(),
                                  .offsets = device_offsets.data(),
                                  .grad_w = grad_w.data()};
  timer.Report({.op = "moe_weight_grad",
                .shape = std::string(l.name) + " f32",
                .rows = kMany,
                .bytes = 8.0 * l.e * l.f * l.d + 2.0 * slots * (2 * l.f + l.d),
                .flops = 4.0 * slots * l.f * l.d},
               kCopyBandwidth, [&](cuda::Stream stream) { return cuda::MoeWeightGrad(args, stream); });
}

// The batched path, and its two products alone: the rest of its time is for moving rows.
void Batched(Timer& timer, const Layer& l, const Weights& weights, std::int64_t n, cuda::Cublas& cublas) {
  const std::vector<std::int32_t> host_ids = testing::RoutedIds(n, l.e, l.k);
  std::vector<std::int64_t> held(static_cast<std::size_t>(l.e));
  for (const std::int32_t id : host_ids) ++held[id];
  const std::int64_t max_tokens = *std::max_element(held.begin(), held.end()), positions = l.e * max_tokens;
  const DeviceArray<std::int32_t> ids(host_ids), overflow(1);
  const DeviceArray<float> routing_weights(std::vector<float>(n * l.k, 0.125f));
  const DeviceArray<std::byte> rows = RandomBf16(n * l.d * 2, 1.0f), out(n * l.d * 2);
  cuda::BatchedMoeForwardArgs args = {.max_tokens = max_tokens, .overflow = overflow.data()};
  args.forward = {.n = n,
                  .d = l.d,
                  .e = l.e,
                  .k = l.k,
                  .f = l.f,
                  .rows = rows.data(),
                  .ids = ids.data(),
                  .weights = routing_weights.data(),
                  .gate_up = weights.gate_up.data(),
                  .down = weights.down.data(),
                  .out = out.data()};
  const DeviceWorkspace workspace = DeviceWorkspace::For(args);
  const DeviceArray<std::byte> x = RandomBf16(positions * l.d * 2, 1.0f), both(positions * 2 * l.f * 2);
  const DeviceArray<std::byte> hidden = RandomBf16(positions * l.f * 2, 1.0f), cublas_memory(cublas.kWorkspaceBytes);
  const cuda::Cublas::Product up = {.experts = l.e,
                                    .rows = max_tokens,
                                    .in = l.d,
                                    .out_features = 2 * l.f,
                                    .x = x.data(),
                                    .w = weights.gate_up.data(),
                                    .out = both.data()};
  const cuda::Cublas::Product down = {.experts = l.e,
                                      .rows = max_tokens,
                                      .in = l.f,
                                      .out_features = l.d,
                                      .x = hidden.data(),
                                      .w = weights.down.data(),
                                      .out = x.data()};
  const double flops = 6.0 * n * l.k * l.f * l.d, weight_bytes = 6.0 * l.e * l.f * l.d;
  const double moved = 2.0 * (2.0 * n * l.d + 1.0 * positions * l.d + 3.0 * positions * l.f + 1.0 * n * l.k * l.d);
  const std::string shape = std::string(l.name) + " max_tokens " + std::to_string(max_tokens);
  timer.Report({.op = "cublas_products", .shape = shape, .rows = n, .bytes = weight_bytes, .flops = flops},
               kReadBandwidth, [&](cuda::Stream stream) {
                 const absl::Status status = cublas.Multiply(up, cublas_memory.data(), stream);
                 return status.ok() ? cublas.Multiply(down, cublas_memory.data(), stream) : status;
               });
  std::printf("%-26s %-34s N %6lld %10.1f us\n", "rest at copy bandwidth", shape.c_str(), static_cast<long long>(n),
              moved / kCopyBandwidth * 1e6);
  timer.Report({.op = "batched_moe_forward", .shape = shape, .rows = n, .bytes = weight_bytes, .flops = flops},
               kReadBandwidth,
               [&](cuda::Stream stream) { return cuda::BatchedMoeForward(args, cublas, workspace, stream); });
}

// All gradients of a layer at N = kMany, the weights' in f32.
void Backward(Timer& timer, const Layer& l, cuda::Recompute recompute) {
  const Weights weights(l);
  const DeviceArray<std::int32_t> ids(testing::RoutedIds(kMany, l.e, l.k));
  const DeviceArray<float> routing_weights(std::vector<float>(kMany * l.k, 0.125f)), grad_weights(kMany * l.k);
  const DeviceArray<std::byte> rows = RandomBf16(kMany * l.d * 2, 1.0f), grad_out = RandomBf16(kMany * l.d * 2, 1.0f);
  const DeviceArray<std::byte> out(kMany * l.d * 2), grad_rows(kMany * l.d * 2);
  const DeviceArray<std::byte> grad_gate_up(l.e * 2 * l.f * l.d * 4), grad_down(l.e * l.d * l.f * 4);
  const FusedMoeForwardArgs forward = {.n = kMany,
                                       .d = l.d,
                                       .e = l.e,
                                       .k = l.k,
                                       .f = l.f,
                                       .rows = rows.data(),
                                       .ids = ids.data(),
                                       .weights = routing_weights.data(),
                                       .gate_up = weights.gate_up.data(),
                                       .down = weights.down.data(),
                                       .out = out.data()};
  const cuda::MoeBackwardArgs args = {.forward = forward,
                                      .recompute = recompute,
                                      .grad_out = grad_out.data(),
                                      .grad_rows = grad_rows.data(),
                                      .grad_weights = grad_weights.data(),
                                      .grad_gate_up = grad_gate_up.data(),
                                      .grad_down = grad_down.data()};
  const DeviceWorkspace saved(cuda::SavedBytes(forward, recompute)), workspace = DeviceWorkspace::For(args);
  const DeviceWorkspace forward_workspace(cuda::MoeForwardWorkspaceBytes(forward, recompute));
  EXPERTD_CHECK_CUDA(cudaDeviceSynchronize());
  if (const absl::Status status = cuda::MoeForward(forward, recompute, saved, forward_workspace, {}); !status.ok()) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    std::abort();
  }
  EXPERTD_CHECK_CUDA(cudaDeviceSynchronize());
  const double weight_elements = 3.0 * l.e * l.f * l.d;
  timer.Report({.op = "moe_backward",
                .shape = std::string(l.name) + (recompute == cuda::Recompute::kNothing ? " f32" : " f32 recompute"),
                .rows = kMany,
                .bytes = 6.0 * weight_elements + 6.0 * kMany * l.d,
                .flops = 12.0 * kMany * l.k * l.f * l.d},
               kCopyBandwidth, [&](cuda::Stream stream) { return cuda::MoeBackward(args, saved, workspace, stream); });
}

}  // namespace

void RunGemmCells(Timer& timer, const std::vector<Layer>& layers) {
  for (const Layer& layer : layers) {
    {
      const Weights weights(layer);
      for (const std::int64_t n : {std::int64_t{512}, std::int64_t{2048}, kMany}) {
        GroupedGemm(timer, layer, weights, n, std::nullopt);
        for (const cuda::GemmTile tile :
             {cuda::GemmTile::k64x32, cuda::GemmTile::k128x64, cuda::GemmTile::k128x128, cuda::GemmTile::k256x128}) {
          GroupedGemm(timer, layer, weights, n, tile);
        }
      }
      for (const std::int64_t n : kRows) Forward(timer, layer, weights, n);
    }
  }
}

void RunBackwardCells(Timer& timer, const std::vector<Layer>& layers) {
  for (const Layer& layer : layers) {
    WeightGrad(timer, layer);
    Backward(timer, layer, cuda::Recompute::kNothing);
    Backward(timer, layer, cuda::Recompute::kActivations);
  }
}

void RunBatchedCells(Timer& timer, const std::vector<Layer>& layers) {
  const absl::StatusOr<std::unique_ptr<cuda::Cublas>> cublas = cuda::Cublas::Create();
  if (!cublas.ok()) {
    std::printf("not measured: %s\n", std::string(cublas.status().message()).c_str());
    return;
  }
  for (const Layer& layer : layers) {
    const Weights weights(layer);
    for (const std::int64_t n : {std::int64_t{512}, kMany}) Batched(timer, layer, weights, n, **cublas);
  }
}

}  // namespace expertd::bench
