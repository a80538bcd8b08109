// moe_align_block_size, a layer's maps, fused_routing_scatter, fused_dispatch_pack: exact, so compared byte for byte.
#include <algorithm>

#include "tests/gpu/gpu_test.h"
#include "tests/gpu/layer_maps.h"

namespace expertd::testing {
namespace {

using SortGpuTest = GpuTest;
using Ids = std::vector<std::int32_t>;

void ExpectAlign(const Ids& ids, std::int64_t e, std::int64_t block) {
  MoeAlignBlockSizeArgs args = {.slots = static_cast<std::int64_t>(ids.size()), .e = e, .block = block};
  const std::int64_t padded = PaddedSlots(args.slots, e, block);
  Ids counts(e), offsets(e + 1), sorted(padded), experts(padded / block);
  args.ids = ids.data(), args.counts = counts.data(), args.offsets = offsets.data();
  args.sorted_slots = sorted.data(), args.block_experts = experts.data();
  EXPERTD_ASSERT_OK(reference::MoeAlignBlockSize(args));

  const DeviceArray<std::int32_t> device_ids(ids), device_counts(e), device_offsets(e + 1), device_sorted(padded),
      device_experts(padded / block);
  args.ids = device_ids.data(), args.counts = device_counts.data(), args.offsets = device_offsets.data();
  args.sorted_slots = device_sorted.data(), args.block_experts = device_experts.data();
  EXPERTD_ASSERT_OK(cuda::MoeAlignBlockSize(args, DeviceWorkspace::For(args), {}));
  EXPECT_EQ(device_counts.Host(), counts);
  EXPECT_EQ(device_offsets.Host(), offsets);
  EXPECT_EQ(device_sorted.Host(), sorted);
  EXPECT_EQ(device_experts.Host(), experts);
}

TEST_F(SortGpuTest, AlignIsTheReferenceAtEverySize) {
  for (const std::int64_t e : ExpertCounts()) {
    for (const std::int64_t k : Cases<std::int64_t>({1, 2, 3, 8, 16}, {3})) {
      if (k > e) continue;
      for (const std::int64_t n : RowCounts()) {
        SCOPED_TRACE("N " + std::to_string(n) + " E " + std::to_string(e) + " K " + std::to_string(k));
        ExpectAlign(TestIds(n, e, k, n % 2 == 1), e, n % 3 == 0 ? 1 : k == 3 ? 17 : 64);
      }
    }
  }
}

TEST_F(SortGpuTest, AlignOfUnevenIds) {
  for (const std::int64_t slots : Cases<std::int64_t>({1, 1024, 4096, 4097, 65536, 300000}, {4099})) {
    SCOPED_TRACE(slots);
    ExpectAlign(Ids(slots, 5), 256, 128);
    ExpectAlign(Ids(slots, -1), 256, 128);
    ExpectAlign(RoutedIds(slots, 256, 1, 1.2), 256, 16);
    ExpectAlign(RoutedIds(slots / 16, 4096, 1), 4096, 8);
  }
}

// The maps of a layer: nothing padded, slots without an expert last.
void ExpectMaps(const Ids& ids, std::int64_t e) {
  MoeAlignBlockSizeArgs args = {.slots = static_cast<std::int64_t>(ids.size()), .e = e, .block = 1};
  const std::int64_t padded = PaddedSlots(args.slots, e, 1);
  Ids counts(e), offsets(e + 1), sorted(padded), experts(padded), positions(ids.size(), -1);
  args.ids = ids.data(), args.counts = counts.data(), args.offsets = offsets.data();
  args.sorted_slots = sorted.data(), args.block_experts = experts.data();
  EXPERTD_ASSERT_OK(reference::MoeAlignBlockSize(args));
  for (std::size_t at = 0; at < ids.size(); ++at) {
    if (sorted[at] >= 0) positions[sorted[at]] = static_cast<std::int32_t>(at);
  }

  LayerMaps maps(ids, e);
  const DeviceArray<std::int32_t> cleared(Ids(1000, 7));
  maps.sort.cleared = cleared.data(), maps.sort.cleared_count = 1000;
  ASSERT_EQ(cuda::LaunchExpertSort(maps.sort, nullptr), 0);
  EXPECT_EQ(maps.counts.Host(), counts);
  EXPECT_EQ(maps.offsets.Host(), offsets);
  sorted.resize(ids.size());
  EXPECT_EQ(maps.sorted_slots.Host(), sorted);
  EXPECT_EQ(maps.positions.Host(), positions);
  EXPECT_EQ(cleared.Host(), Ids(1000, 0));
}

TEST_F(SortGpuTest, MapsAreTheReferenceAtEverySize) {
  for (const std::int64_t e : Cases<std::int64_t>({1, 2, 60, 128, 512, 513}, {60})) {
    for (const std::int64_t k : Cases<std::int64_t>({1, 2, 8}, {2})) {
      if (k > e) continue;
      for (const std::int64_t n : Cases<std::int64_t>(
               {1,   2,   7,   8,    9,    31,   32,   33,   64,   65,   127,  128,  129,  255,   256,  257,
                511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049, 4096, 4097, 8191, 8192, 16384, 16385},
               {1, 33, 520, 2100})) {
        SCOPED_TRACE("N " + std::to_string(n) + " E " + std::to_string(e) + " K " + std::to_string(k));
        ExpectMaps(TestIds(n, e, k, n % 2 == 1), e);
      }
    }
  }
}

TEST_F(SortGpuTest, MapsOfUnevenIds) {
  for (const std::int64_t slots : Cases<std::int64_t>({1, 64, 1000, 4096, 4097, 16384, 16385}, {1000, 4097})) {
    SCOPED_TRACE(slots);
    ExpectMaps(Ids(slots, 5), 256);
    ExpectMaps(Ids(slots, 255), 256);
    ExpectMaps(Ids(slots, -1), 256);
    ExpectMaps(RoutedIds(slots, 256, 1, 1.2), 256);
  }
}

void ExpectScatter(FusedRoutingScatterArgs args, const Ids& ids, const HostArray& rows) {
  HostArray want(args.dtype, args.e * args.max_tokens * args.d);
  Ids slot_pos(ids.size()), counts(args.e), overflow(1);
  args.rows = rows.bytes.data(), args.ids = ids.data(), args.batched = want.bytes.data();
  args.slot_pos = slot_pos.data(), args.counts = counts.data(), args.overflow = overflow.data();
  EXPERTD_ASSERT_OK(reference::FusedRoutingScatter(args));

  const DeviceArray<std::byte> device_rows(rows.bytes), batched(static_cast<std::int64_t>(want.bytes.size()));
  const DeviceArray<std::int32_t> device_ids(ids), device_pos(args.n * args.k), device_counts(args.e),
      device_overflow(1);
  args.rows = device_rows.data(), args.ids = device_ids.data(), args.batched = batched.data();
  args.slot_pos = device_pos.data(), args.counts = device_counts.data(), args.overflow = device_overflow.data();
  EXPERTD_ASSERT_OK(cuda::FusedRoutingScatter(args, DeviceWorkspace::For(args), {}));
  EXPECT_EQ(device_counts.Host(), counts);
  EXPECT_EQ(device_overflow.Host(), overflow);
  EXPECT_EQ(device_pos.Host(), slot_pos);
  EXPECT_EQ(batched.Host(), want.bytes);
}

TEST_F(SortGpuTest, ScatterIsTheReference) {
  for (const DType dtype : kRowTypes) {
    for (const std::int64_t n : RowCounts()) {
      for (const std::int64_t d : {1, 7, 8, 40}) {
        const HostArray rows = HostArray::Normal(dtype, n * d, 5);
        for (const std::int64_t max_tokens : {std::int64_t{0}, std::int64_t{1}, n / 8, n}) {
          SCOPED_TRACE("N " + std::to_string(n) + " D " + std::to_string(d) + " max_tokens " +
                       std::to_string(max_tokens));
          const FusedRoutingScatterArgs args = {
              .n = n, .d = d, .e = 8, .k = 2, .max_tokens = max_tokens, .dtype = dtype};
          ExpectScatter(args, TestIds(n, 8, 2, n % 2 == 1), rows);
        }
      }
    }
  }
}

// More rows of 16 KiB than the shared memory of a Hopper device holds, so that they take turns there.
TEST_F(SortGpuTest, ScatterOfManyLargeRows) {
  const FusedRoutingScatterArgs args = {.n = 3001, .d = 8192, .e = 8, .k = 2, .max_tokens = 700};
  ExpectScatter(args, TestIds(args.n, 8, 2, true), HostArray::Normal(DType::kBF16, args.n * args.d, 7));
}
TEST_F(SortGpuTest, ScatterReportsWhatIsOverCapacity) {
  const FusedRoutingScatterArgs args = {.n = 5000, .d = 8, .e = 4, .k = 1, .max_tokens = 100};
  ExpectScatter(args, Ids(5000, 3), HostArray::Normal(DType::kBF16, 5000 * 8, 6));
}

TEST_F(SortGpuTest, PackIsTheReferenceAndLeavesTheRestAlone) {
  for (const std::int64_t n : RowCounts()) {
    for (const std::int64_t d : {1, 7, 8, 72}) {
      for (const std::int64_t shards : {1, 3, 8}) {
        SCOPED_TRACE("N " + std::to_string(n) + " D " + std::to_string(d) + " shards " + std::to_string(shards));
        constexpr std::int64_t kE = 60, kK = 4;
        FusedDispatchPackArgs args = {.n = n, .d = d, .e = kE, .k = kK, .shards = shards};
        Ids ids = TestIds(n, kE, kK, n % 2 == 1), source(ids.size()), counts(shards);
        const HostArray rows = HostArray::Normal(DType::kBF16, n * d, 8);
        // Poisoned like device memory, so that untouched rows compare equal.
        std::vector<std::byte> want(static_cast<std::size_t>(n * kK * (d + 8) * 2), std::byte{0x7e});
        args.rows = rows.bytes.data(), args.ids = ids.data(), args.packed = want.data();
        args.source = source.data(), args.counts = counts.data();
        EXPERTD_ASSERT_OK(reference::FusedDispatchPack(args));

        const DeviceArray<std::byte> device_rows(rows.bytes), packed(static_cast<std::int64_t>(want.size()));
        const DeviceArray<std::int32_t> device_ids(ids), device_source(n * kK), device_counts(shards);
        args.rows = device_rows.data(), args.ids = device_ids.data(), args.packed = packed.data();
        args.source = device_source.data(), args.counts = device_counts.data();
        EXPERTD_ASSERT_OK(cuda::FusedDispatchPack(args, DeviceWorkspace::For(args), {}));
        EXPECT_EQ(device_counts.Host(), counts);
        EXPECT_EQ(device_source.Host(), source);
        EXPECT_EQ(packed.Host(), want);
      }
    }
  }
}

TEST_F(SortGpuTest, AWorkspaceThatIsTooSmallIsRefused) {
  const MoeAlignBlockSizeArgs sizes = {.slots = 65536, .e = 256, .block = 64};
  ASSERT_GT(cuda::WorkspaceBytes(sizes), 0);
  const Ids ids(65536, 0);
  const DeviceArray<std::int32_t> memory(200000);
  MoeAlignBlockSizeArgs args = sizes;
  args.ids = args.counts = args.offsets = args.sorted_slots = args.block_experts = memory.data();
  const absl::Status status = cuda::MoeAlignBlockSize(args, {memory.data(), cuda::WorkspaceBytes(sizes) - 1}, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

}  // namespace
}  // namespace expertd::testing
