// moe_grouped_gemm and moe_weight_grad.
#include <algorithm>

#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/host.h"
#include "kernels/cuda/weight_grad.h"
#include "kernels/reference/loops.h"
#include "kernels/reference/parallel.h"
#include "tests/gpu/gpu_test.h"

namespace expertd::testing {
namespace {

using GemmGpuTest = GpuTest;

// Groups of these sizes, one after another.
std::vector<std::int32_t> OffsetsOf(const std::vector<std::int64_t>& sizes) {
  std::vector<std::int32_t> offsets = {0};
  for (const std::int64_t size : sizes) offsets.push_back(offsets.back() + static_cast<std::int32_t>(size));
  return offsets;
}

struct Groups {
  const char* name;
  std::vector<std::int32_t> offsets;
};
std::vector<Groups> AllGroups() {
  std::vector<Groups> all = {{"one", OffsetsOf({1})},
                             {"none", OffsetsOf({0, 0, 0})},
                             {"edges", OffsetsOf({0, 1, 2, 7, 8, 9, 0, 31, 32, 33, 63, 64, 65, 127, 128, 129, 0})},
                             {"one expert has all", OffsetsOf({0, 0, 1000, 0})},
                             {"many small", OffsetsOf(std::vector<std::int64_t>(384, 1))}};
  if (SmallTests()) all = {{"edges", OffsetsOf({0, 1, 8, 9, 33, 0})}};
  return all;
}

struct Shape {
  std::int64_t in, out;
};
// Tiles and their neighbours; the last two are not for tensor cores.
std::vector<Shape> Shapes() {
  return Cases<Shape>({{8, 8}, {64, 64}, {72, 136}, {136, 264}, {200, 61}, {512, 128}, {61, 35}, {64, 1}},
                      {{72, 136}, {72, 61}, {61, 35}});
}

// Gathers every third position's row from elsewhere; with holes, every fifth position is padding.
std::vector<std::int32_t> GatherOf(std::int64_t positions, std::int64_t rows, bool holes) {
  std::vector<std::int32_t> gather(static_cast<std::size_t>(positions));
  for (std::int64_t p = 0; p < positions; ++p) {
    gather[p] = holes && p % 5 == 4 ? -1 : static_cast<std::int32_t>((p * 7 + 1) % rows);
  }
  return gather;
}

HostArray Poisoned(DType dtype, std::int64_t count) {
  HostArray array(dtype, count);
  std::fill(array.bytes.begin(), array.bytes.end(), std::byte{0x7e});
  return array;
}

// The reference, a few experts at a time on every core.
void ReferenceGemm(const MoeGroupedGemmArgs& args, HostArray& want) {
  reference::ParallelFor(args.e, [&](std::int64_t e) {
    const auto* const w = static_cast<const std::byte*>(args.w) + BytesOf(args.dtype, e * args.out_features * args.in);
    reference::GroupedGemm(1, args.in, args.out_features, {args.x, args.dtype}, args.gather, args.offsets + e,
                           {w, args.dtype}, want.out());
  });
}

// Padding stays poisoned in both, and would drown every error: compare it exactly, the rest by distance.
void ExpectGemm(const HostArray& got, HostArray want, const std::vector<std::int32_t>& gather, std::int64_t width) {
  HostArray close = got;
  for (std::size_t p = 0; p < gather.size(); ++p) {
    if (gather[p] >= 0) continue;
    const std::size_t bytes = want.bytes.size() / gather.size(), at = p * bytes;
    EXPECT_TRUE(std::equal(got.bytes.begin() + at, got.bytes.begin() + at + bytes, want.bytes.begin() + at)) << p;
    std::fill_n(close.bytes.begin() + at, bytes, std::byte{0});
    std::fill_n(want.bytes.begin() + at, bytes, std::byte{0});
  }
  EXPECT_CLOSE(close, want, Tolerance(want.dtype));
}

TEST_F(GemmGpuTest, GroupedGemmIsTheReference) {
  for (const DType dtype : kRowTypes) {
    for (const Groups& groups : AllGroups()) {
      for (const Shape shape : Shapes()) {
        for (const int mode : {0, 1, 2}) {  // no gather, gather, gather with holes
          const auto e = static_cast<std::int64_t>(groups.offsets.size()) - 1;
          const std::int64_t positions = groups.offsets.back();
          if (positions == 0 && mode > 0) continue;
          SCOPED_TRACE(std::string(groups.name) + " " + std::string(DTypeName(dtype)) + " in " +
                       std::to_string(shape.in) + " out " + std::to_string(shape.out) + " mode " +
                       std::to_string(mode));
          const std::int64_t rows = mode == 0 ? positions : positions / 2 + 1;
          const HostArray x = HostArray::Normal(dtype, rows * shape.in, 41);
          const HostArray w = HostArray::Normal(dtype, e * shape.out * shape.in, 42, 0.1);
          const std::vector<std::int32_t> gather =
              mode == 0 ? std::vector<std::int32_t>() : GatherOf(positions, rows, mode == 2);
          HostArray want = Poisoned(dtype, positions * shape.out);
          MoeGroupedGemmArgs args = {
              .positions = positions, .e = e, .in = shape.in, .out_features = shape.out, .dtype = dtype};
          args.x = x.bytes.data(), args.w = w.bytes.data();
          args.gather = mode == 0 ? nullptr : gather.data(), args.offsets = groups.offsets.data();
          ReferenceGemm(args, want);

          const DeviceArray<std::byte> device_x(x.bytes), device_w(w.bytes);
          const DeviceArray<std::byte> out(static_cast<std::int64_t>(want.bytes.size()));
          const DeviceArray<std::int32_t> device_gather(gather), offsets(groups.offsets);
          args.x = device_x.data(), args.w = device_w.data(), args.out = out.data();
          args.gather = device_gather.data(), args.offsets = offsets.data();
          EXPERTD_ASSERT_OK(cuda::MoeGroupedGemm(args, {}));
          ExpectGemm(Fetch(out, dtype), want, gather, shape.out);
        }
      }
    }
  }
}

// The choice of a tile must never show: that is what makes a row independent of its batch.
TEST_F(GemmGpuTest, EveryTileGivesTheSameBits) {
  const Groups groups = SmallTests() ? AllGroups()[0] : AllGroups()[2];
  const std::int64_t positions = groups.offsets.back(), e = static_cast<std::int64_t>(groups.offsets.size()) - 1;
  for (const Shape shape : Cases<Shape>({{72, 136}, {2048, 264}, {200, 61}}, {{72, 136}, {200, 61}})) {
    const DeviceArray<std::byte> x(HostArray::Normal(DType::kBF16, positions * shape.in, 43).bytes);
    const DeviceArray<std::byte> w(HostArray::Normal(DType::kBF16, e * shape.out * shape.in, 44, 0.1).bytes);
    const DeviceArray<std::int32_t> offsets(groups.offsets);
    std::vector<std::byte> first;
    for (int tile = 0; tile < static_cast<int>(std::size(cuda::kGemmTiles)); ++tile) {
      for (const int blocks : Cases<int>({1, 7, 132}, {3})) {
        const DeviceArray<std::byte> out(positions * shape.out * 2);
        const cuda::GroupedGemmLaunch launch = {.positions = positions,
                                                .experts = e,
                                                .in = shape.in,
                                                .out_features = shape.out,
                                                .tile = static_cast<cuda::GemmTile>(tile),
                                                .blocks = blocks,
                                                .x = x.data(),
                                                .offsets = offsets.data(),
                                                .w = w.data(),
                                                .out = out.data()};
        EXPERTD_ASSERT_OK(cuda::FromCuda(cuda::LaunchGroupedGemm(launch, nullptr), "gemm"));
        const std::vector<std::byte> bits = out.Host();
        if (first.empty()) first = bits;
        EXPECT_TRUE(bits == first) << "tile " << tile << " blocks " << blocks << " in " << shape.in;
      }
    }
  }
}

TEST_F(GemmGpuTest, WeightGradIsTheReference) {
  for (const DType dtype : kRowTypes) {
    for (const DType w_dtype : kRowTypes) {
      for (const Groups& groups : AllGroups()) {
        for (const Shape shape : Shapes()) {
          const auto e = static_cast<std::int64_t>(groups.offsets.size()) - 1;
          const std::int64_t positions = groups.offsets.back();
          SCOPED_TRACE(std::string(groups.name) + " " + std::string(DTypeName(dtype)) + " in " +
                       std::to_string(shape.in) + " out " + std::to_string(shape.out));
          const HostArray grad = HostArray::Normal(dtype, positions * shape.out, 45);
          const HostArray x = HostArray::Normal(dtype, positions * shape.in, 46);
          HostArray want(w_dtype, e * shape.out * shape.in);
          MoeWeightGradArgs args = {.positions = positions,
                                    .e = e,
                                    .in = shape.in,
                                    .out_features = shape.out,
                                    .dtype = dtype,
                                    .w_dtype = w_dtype};
          reference::ParallelFor(e, [&](std::int64_t expert) {
            auto* const to = want.bytes.data() + BytesOf(w_dtype, expert * shape.out * shape.in);
            reference::WeightGrad(1, shape.in, shape.out, grad.in(), x.in(), groups.offsets.data() + expert,
                                  {to, w_dtype});
          });
          const DeviceArray<std::byte> device_grad(grad.bytes), device_x(x.bytes);
          const DeviceArray<std::byte> out(static_cast<std::int64_t>(want.bytes.size()));
          const DeviceArray<std::int32_t> offsets(groups.offsets);
          args.grad_out = device_grad.data(), args.x = device_x.data(), args.grad_w = out.data();
          args.offsets = offsets.data();
          EXPERTD_ASSERT_OK(cuda::MoeWeightGrad(args, {}));
          EXPECT_CLOSE(Fetch(out, w_dtype), want, Tolerance(w_dtype));
        }
      }
    }
  }
}

// What a device chooses by itself on one run; here both kernels for tensor cores, wherever they can run.
TEST_F(GemmGpuTest, WeightGradOfEveryKernelIsTheReference) {
  const Groups groups = AllGroups()[SmallTests() ? 0 : 2];
  const std::int64_t positions = groups.offsets.back(), e = static_cast<std::int64_t>(groups.offsets.size()) - 1;
  for (const Shape shape : Cases<Shape>({{72, 136}, {136, 264}, {512, 128}}, {{72, 136}})) {
    const HostArray grad = HostArray::Normal(DType::kBF16, positions * shape.out, 47);
    const HostArray x = HostArray::Normal(DType::kBF16, positions * shape.in, 48);
    HostArray want(DType::kF32, e * shape.out * shape.in);
    reference::WeightGrad(e, shape.in, shape.out, grad.in(), x.in(), groups.offsets.data(), want.out());
    const DeviceArray<std::byte> device_grad(grad.bytes), device_x(x.bytes), out(e * shape.out * shape.in * 4);
    const DeviceArray<std::int32_t> offsets(groups.offsets);
    const cuda::WeightGradLaunch launch = {.experts = e,
                                           .in = shape.in,
                                           .out_features = shape.out,
                                           .blocks = 7,
                                           .grad_out = device_grad.data(),
                                           .x = device_x.data(),
                                           .offsets = offsets.data(),
                                           .grad_w = out.data()};
    EXPERTD_ASSERT_OK(cuda::FromCuda(cuda::LaunchWeightGrad(launch, nullptr), "weight_grad"));
    EXPECT_CLOSE(Fetch(out, DType::kF32), want, Tolerance(DType::kF32));
  }
}

// The last step of an expert's positions holds the next expert's rows; what is not a number there must stay there.
TEST_F(GemmGpuTest, WeightGradOfAPoisonedExpertHarmsNoOther) {
  const std::vector<std::int32_t> host_offsets = OffsetsOf({33, 20, 64, 1});
  const std::int64_t positions = host_offsets.back(), in = 72, out_features = 136;
  HostArray grad = HostArray::Normal(DType::kBF16, positions * out_features, 49);
  HostArray x = HostArray::Normal(DType::kBF16, positions * in, 50);
  const auto run = [&] {
    const DeviceArray<std::byte> device_grad(grad.bytes), device_x(x.bytes), out(4 * out_features * in * 4);
    const DeviceArray<std::int32_t> offsets(host_offsets);
    const MoeWeightGradArgs args = {.positions = positions,
                                    .e = 4,
                                    .in = in,
                                    .out_features = out_features,
                                    .grad_out = device_grad.data(),
                                    .x = device_x.data(),
                                    .offsets = offsets.data(),
                                    .grad_w = out.data()};
    const absl::Status status = cuda::MoeWeightGrad(args, {});
    EXPECT_TRUE(status.ok()) << status;
    return out.Host();
  };
  const std::vector<std::byte> clean = run();
  for (std::int64_t i = 0; i < 20 * out_features; ++i) grad.out().Set(33 * out_features + i, std::nan(""));
  for (std::int64_t i = 0; i < 20 * in; ++i) x.out().Set(33 * in + i, std::nan(""));
  const std::vector<std::byte> got = run();
  const std::int64_t bytes = out_features * in * 4;
  for (const std::int64_t expert : {0, 2, 3}) {
    EXPECT_TRUE(
        std::equal(got.begin() + expert * bytes, got.begin() + (expert + 1) * bytes, clean.begin() + expert * bytes))
        << expert;
  }
}

}  // namespace
}  // namespace expertd::testing
