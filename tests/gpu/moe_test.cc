// fused_moe_forward, what composes it, and what all ops have in common: independence of the batch, graphs.
#include <algorithm>

#include "tests/gpu/moe_layer.h"

namespace expertd::testing {
namespace {

using MoeGpuTest = GpuTest;

TEST_F(MoeGpuTest, ForwardIsTheReference) {
  struct Case {
    std::int64_t d, e, k, f;
  };
  for (const Case c : {Case{64, 8, 2, 96}, Case{136, 60, 4, 72}, Case{72, 256, 8, 40}, Case{33, 5, 2, 17}}) {
    for (const DType dtype : kRowTypes) {
      for (const std::int64_t n : Cases<std::int64_t>({0, 1, 2, 33, 129, 1000}, {33})) {
        for (const bool on_input : {false, true}) {
          SCOPED_TRACE(std::string(DTypeName(dtype)) + " N " + std::to_string(n) + " E " + std::to_string(c.e) + " D " +
                       std::to_string(c.d) + (on_input ? " weight on input" : ""));
          const MoeLayer layer({.n = n,
                                .d = c.d,
                                .e = c.e,
                                .k = c.k,
                                .f = c.f,
                                .activation = n % 2 == 0 ? Activation::kSilu : Activation::kGelu,
                                .weight_on_input = on_input,
                                .dtype = dtype,
                                .out_dtype = n == 33 ? DType::kF32 : dtype},
                               n == 129);
          const HostArray got(layer.sizes.out_dtype, DeviceMoeLayer(layer).Run());
          // A few rows are too few numbers for the roundings to average out.
          const double bf16_tolerance = n < 33 ? 1e-2 : 5e-3;
          EXPECT_CLOSE(got, layer.Reference(), dtype == DType::kBF16 ? bf16_tolerance : 5e-6);
        }
      }
    }
  }
}

TEST_F(MoeGpuTest, ForwardIsTheReferenceAtEverySize) {
  for (const std::int64_t e : ExpertCounts()) {
    for (const std::int64_t k : Cases<std::int64_t>({1, 2, 8, 16}, {8})) {
      if (k > e) continue;
      for (const std::int64_t n : RowCounts()) {
        if (n == 4097 && k > 2) continue;  // the reference takes its time
        const DType dtype = (n + e / 8) % 2 == 0 ? DType::kBF16 : DType::kF32;
        SCOPED_TRACE(std::string(DTypeName(dtype)) + " N " + std::to_string(n) + " E " + std::to_string(e) + " K " +
                     std::to_string(k));
        const FusedMoeForwardArgs sizes = {
            .n = n, .d = 40, .e = e, .k = k, .f = 24, .dtype = dtype, .out_dtype = DType::kF32};
        const MoeLayer layer(sizes, n % 2 == 1);
        const HostArray got(DType::kF32, DeviceMoeLayer(layer).Run());
        EXPECT_CLOSE(got, layer.Reference(), dtype == DType::kBF16 ? 1e-2 : 5e-6);
      }
    }
  }
}

TEST_F(MoeGpuTest, ForwardOfOneExpertForAllAndOfNone) {
  for (const std::int32_t expert : {0, 59, -1}) {
    SCOPED_TRACE(expert);
    MoeLayer layer({.n = SmallTests() ? 65 : 1000, .d = 72, .e = 60, .k = 1, .f = 40});
    std::fill(layer.ids.begin(), layer.ids.end(), expert);
    const HostArray got(DType::kBF16, DeviceMoeLayer(layer).Run());
    EXPECT_CLOSE(got, layer.Reference(), 5e-3);
  }
}

TEST_F(MoeGpuTest, ARowHasTheSameBitsInEveryBatch) {
  const std::int64_t rows = SmallTests() ? 129 : 4097;
  const MoeLayer all({.n = rows, .d = 256, .e = 16, .k = 4, .f = 128});
  DeviceMoeLayer device(all);
  const std::vector<std::byte> want = device.Run();
  const std::int64_t row_bytes = all.sizes.d * 2;
  for (const std::int64_t n : Cases<std::int64_t>({1, 2, 8, 31, 32, 33, 127, 128, 129, 1000}, {1, 33})) {
    for (const std::int64_t first : {std::int64_t{0}, std::int64_t{17}, rows - n}) {
      EXPECT_TRUE(std::equal(want.begin() + first * row_bytes, want.begin() + (first + n) * row_bytes,
                             device.Run(first, n).begin()))
          << "rows " << first << ".." << first + n;
    }
  }
}

TEST_F(MoeGpuTest, APoisonedRowHarmsNoOther) {
  MoeLayer layer({.n = 40, .d = 64, .e = 4, .k = 2, .f = 64});
  const std::vector<std::byte> clean = DeviceMoeLayer(layer).Run();
  for (std::int64_t i = 0; i < 64; ++i) layer.rows.out().Set(7 * 64 + i, std::nan(""));
  const std::vector<std::byte> got = DeviceMoeLayer(layer).Run();
  EXPECT_TRUE(std::equal(got.begin(), got.begin() + 7 * 128, clean.begin()));
  EXPECT_TRUE(std::equal(got.begin() + 8 * 128, got.end(), clean.begin() + 8 * 128));
  EXPECT_TRUE(std::isnan(HostArray(DType::kBF16, got).in()[7 * 64]));
}

TEST_F(MoeGpuTest, ALayerReplaysAsAGraph) {
  for (const std::int64_t n : Cases<std::int64_t>({1, 33, 1000}, {33})) {
    DeviceMoeLayer layer(MoeLayer({.n = n, .d = 64, .e = 8, .k = 2, .f = 96}));
    const std::vector<std::byte> want = layer.Run();
    const DeviceStream stream;
    const DeviceGraph graph(stream, [&] {
      const absl::Status status = cuda::FusedMoeForward(layer.args, layer.workspace, stream);
      EXPECT_TRUE(status.ok()) << status;
    });
    for (int replay = 0; replay < 3; ++replay) {
      EXPERTD_CHECK_CUDA(cudaMemset(layer.out.data(), 0x7e, layer.out.Bytes()));
      EXPERTD_CHECK_CUDA(cudaDeviceSynchronize());
      graph.Replay(stream);
      EXPECT_TRUE(layer.out.Host() == want) << "N " << n << " replay " << replay;
    }
  }
}

// The other ops, captured one after another with every launch that they make.
TEST_F(MoeGpuTest, EveryOpCanBeCaptured) {
  constexpr std::int64_t kD = 64, kE = 8, kK = 2;
  const std::int64_t kN = SmallTests() ? 1100 : 5000, kSlots = kN * kK;  // more slots than the ops for few take
  const DeviceArray<std::int32_t> ids(RoutedIds(kN, kE, kK)), counts(kE), offsets(kE + 1), sorted(kSlots),
      experts(kSlots);
  const DeviceArray<std::int32_t> positions(kSlots), overflow(1), source(kSlots), shard_counts(2);
  const DeviceArray<float> logits(std::vector<float>(kN * kE, 0.25f)), weights(kSlots), grad_weights(kSlots);
  const DeviceArray<std::int32_t> chosen(kSlots);
  const DeviceArray<std::byte> rows(HostArray::Normal(DType::kBF16, kN * kD, 61).bytes);
  const DeviceArray<std::byte> batched(kE * kN * kD * 2), out(kN * kD * 2), packed(kSlots * (kD + 8) * 2);
  const DeviceArray<std::byte> activated(kN * kD), grad_in(kN * kD * 2), grad_w(kE * kD * kD * 4);

  FusedTopkRoutingArgs topk = {.n = kN, .e = kE, .k = kK, .logits = logits.data(), .weights = weights.data()};
  topk.ids = chosen.data();
  MoeAlignBlockSizeArgs align = {.slots = kSlots, .e = kE, .ids = ids.data(), .counts = counts.data()};
  align.offsets = offsets.data(), align.sorted_slots = sorted.data(), align.block_experts = experts.data();
  FusedRoutingScatterArgs scatter = {.n = kN, .d = kD, .e = kE, .k = kK, .max_tokens = kN};
  scatter.rows = rows.data(), scatter.ids = ids.data(), scatter.batched = batched.data();
  scatter.slot_pos = positions.data(), scatter.counts = counts.data(), scatter.overflow = overflow.data();
  const FusedGatherReduceArgs gather = {.n = kN,
                                        .d = kD,
                                        .k = kK,
                                        .r = kE * kN,
                                        .expert_out = batched.data(),
                                        .slot_row = positions.data(),
                                        .weights = weights.data(),
                                        .out = out.data()};
  const FusedRoutingWeightGradArgs weight_grad = {.n = kN,
                                                  .d = kD,
                                                  .k = kK,
                                                  .r = kE * kN,
                                                  .expert_out = batched.data(),
                                                  .grad_out = out.data(),
                                                  .slot_row = positions.data(),
                                                  .grad_weights = grad_weights.data()};
  const FusedWeightedScatterArgs spread = {.n = kN,
                                           .d = kD,
                                           .k = kK,
                                           .r = kE * kN,
                                           .grad_out = out.data(),
                                           .slot_row = positions.data(),
                                           .weights = weights.data(),
                                           .grad_expert = batched.data()};
  FusedDispatchPackArgs pack = {
      .n = kN, .d = kD, .e = kE, .k = kK, .shards = 2, .rows = rows.data(), .ids = ids.data()};
  pack.packed = packed.data(), pack.source = source.data(), pack.counts = shard_counts.data();
  const ActivationForwardArgs forward = {.m = kN, .f = kD / 2, .in = rows.data(), .out = activated.data()};
  const ActivationBackwardArgs backward = {
      .m = kN, .f = kD / 2, .grad_out = activated.data(), .in = rows.data(), .grad_in = grad_in.data()};
  const MoeWeightGradArgs grad = {.positions = kSlots,
                                  .e = kE,
                                  .in = kD,
                                  .out_features = kD,
                                  .grad_out = batched.data(),
                                  .x = batched.data(),
                                  .offsets = offsets.data(),
                                  .grad_w = grad_w.data()};
  const DeviceWorkspace align_workspace = DeviceWorkspace::For(align),
                        scatter_workspace = DeviceWorkspace::For(scatter);
  const DeviceWorkspace spread_workspace = DeviceWorkspace::For(spread), pack_workspace = DeviceWorkspace::For(pack);

  const auto enqueue = [&](cuda::Stream stream) {
    EXPERTD_ASSERT_OK(cuda::FusedTopkRouting(topk, stream));
    EXPERTD_ASSERT_OK(cuda::MoeAlignBlockSize(align, align_workspace, stream));
    EXPERTD_ASSERT_OK(cuda::FusedRoutingScatter(scatter, scatter_workspace, stream));
    EXPERTD_ASSERT_OK(cuda::FusedGatherReduce(gather, stream));
    EXPERTD_ASSERT_OK(cuda::FusedRoutingWeightGrad(weight_grad, stream));
    EXPERTD_ASSERT_OK(cuda::MoeWeightGrad(grad, stream));
    EXPERTD_ASSERT_OK(cuda::FusedWeightedScatter(spread, spread_workspace, stream));
    EXPERTD_ASSERT_OK(cuda::FusedDispatchPack(pack, pack_workspace, stream));
    EXPERTD_ASSERT_OK(cuda::ActivationForward(forward, stream));
    EXPERTD_ASSERT_OK(cuda::ActivationBackward(backward, stream));
  };
  const auto results = [&] {
    return std::vector{batched.Host(), out.Host(), packed.Host(), activated.Host(), grad_in.Host(), grad_w.Host()};
  };
  enqueue({});
  const auto want = results();
  const auto want_grads = grad_weights.Host();
  const DeviceStream stream;
  const DeviceGraph graph(stream, [&] { enqueue(stream); });
  for (const DeviceArray<std::byte>* array : {&batched, &out, &packed, &activated, &grad_in, &grad_w}) {
    EXPERTD_CHECK_CUDA(cudaMemset(array->data(), 0x7e, array->Bytes()));
  }
  EXPERTD_CHECK_CUDA(cudaDeviceSynchronize());
  graph.Replay(stream);
  EXPECT_TRUE(results() == want);
  EXPECT_EQ(grad_weights.Host(), want_grads);
}

}  // namespace
}  // namespace expertd::testing
