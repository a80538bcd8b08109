// The expert part of a layer with random rows and weights, on the host and on the device, for tests of the ops that run
// all of it.
#pragma once

#include <vector>

#include "kernels/reference/parallel.h"
#include "tests/gpu/gpu_test.h"

namespace expertd::testing {

// A layer's rows and weights on host and device.
struct MoeLayer {
  FusedMoeForwardArgs sizes;
  HostArray rows, gate_up, down;
  std::vector<std::int32_t> ids;
  std::vector<float> weights;

  explicit MoeLayer(const FusedMoeForwardArgs& args, bool holes = false)
      : sizes(args),
        rows(HostArray::Normal(args.dtype, args.n * args.d, 51)),
        gate_up(HostArray::Normal(args.dtype, args.e * 2 * args.f * args.d, 52, 0.2)),
        down(HostArray::Normal(args.dtype, args.e * args.d * args.f, 53, 0.2)),
        ids(TestIds(args.n, args.e, args.k, holes)),
        weights(static_cast<std::size_t>(args.n * args.k)) {
    Random random(54);
    for (float& weight : weights) weight = static_cast<float>(random.Uniform());
  }

  // Row by row on every core.
  HostArray Reference() const {
    HostArray want(sizes.out_dtype, sizes.n * sizes.d);
    reference::ParallelFor(sizes.n, [&](std::int64_t n) {
      FusedMoeForwardArgs one = sizes;
      one.n = 1;
      one.rows = rows.bytes.data() + BytesOf(sizes.dtype, n * sizes.d);
      one.ids = ids.data() + n * sizes.k, one.weights = weights.data() + n * sizes.k;
      one.gate_up = gate_up.bytes.data(), one.down = down.bytes.data();
      one.out = want.bytes.data() + BytesOf(sizes.out_dtype, n * sizes.d);
      const absl::Status status = reference::FusedMoeForward(one);
      EXPECT_TRUE(status.ok()) << status;
    });
    return want;
  }

  // `n` of its rows, from `first` on.
  MoeLayer Part(std::int64_t first, std::int64_t n) const {
    const std::int64_t row_bytes = BytesOf(sizes.dtype, sizes.d), k = sizes.k;
    MoeLayer part = *this;
    part.sizes.n = n;
    part.rows.bytes.assign(rows.bytes.begin() + first * row_bytes, rows.bytes.begin() + (first + n) * row_bytes);
    part.ids.assign(ids.begin() + first * k, ids.begin() + (first + n) * k);
    part.weights.assign(weights.begin() + first * k, weights.begin() + (first + n) * k);
    return part;
  }
};

struct DeviceMoeLayer {
  FusedMoeForwardArgs args;
  DeviceArray<std::byte> rows, gate_up, down, out;
  DeviceArray<std::int32_t> ids;
  DeviceArray<float> weights;
  DeviceWorkspace workspace;

  explicit DeviceMoeLayer(const MoeLayer& layer)
      : args(layer.sizes),
        rows(layer.rows.bytes),
        gate_up(layer.gate_up.bytes),
        down(layer.down.bytes),
        out(BytesOf(args.out_dtype, args.n * args.d)),
        ids(layer.ids),
        weights(layer.weights),
        workspace(DeviceWorkspace::For(args)) {
    args.rows = rows.data(), args.gate_up = gate_up.data(), args.down = down.data(), args.out = out.data();
    args.ids = ids.data(), args.weights = weights.data();
  }
  std::vector<std::byte> Run() { return Run(0, args.n); }
  // `n` of the rows, from `first` on, as a batch of their own.
  std::vector<std::byte> Run(std::int64_t first, std::int64_t n) {
    FusedMoeForwardArgs part = args;
    const std::int64_t row_bytes = BytesOf(args.dtype, args.d), out_bytes = BytesOf(args.out_dtype, args.d);
    part.n = n;
    part.rows = rows.data() + first * row_bytes, part.out = out.data() + first * out_bytes;
    part.ids += first * args.k, part.weights += first * args.k;
    EXPERTD_CHECK_CUDA(cudaMemset(out.data(), 0x7e, out.Bytes()));
    const absl::Status status = cuda::FusedMoeForward(part, workspace, {});
    EXPECT_TRUE(status.ok()) << status;
    const std::vector<std::byte> all = out.Host();
    return {all.begin() + first * out_bytes, all.begin() + (first + n) * out_bytes};
  }
};

}  // namespace expertd::testing
