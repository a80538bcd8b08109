// batched_moe_forward against the reference; skips, visibly, where cuBLAS is not installed.
#include <algorithm>

#include "kernels/cuda/batched_moe_forward.h"
#include "tests/gpu/gpu_test.h"

namespace expertd::testing {
namespace {

class BatchedGpuTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    absl::StatusOr<std::unique_ptr<cuda::Cublas>> cublas = cuda::Cublas::Create();
    if (absl::IsFailedPrecondition(cublas.status())) GTEST_SKIP() << cublas.status();
    ASSERT_TRUE(cublas.ok()) << cublas.status();
    cublas_ = *std::move(cublas);
  }
  std::unique_ptr<cuda::Cublas> cublas_;
};

// A slot's id becomes -1 where its expert has no room: what the op reports and counts as zero.
std::int32_t DropOverCapacity(std::vector<std::int32_t>& ids, std::int64_t e, std::int64_t max_tokens) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(e));
  std::int32_t dropped = 0;
  for (std::int32_t& id : ids) {
    if (id < 0 || ++counts[id] <= max_tokens) continue;
    id = -1, ++dropped;
  }
  return dropped;
}

TEST_F(BatchedGpuTest, ForwardIsTheReference) {
  constexpr std::int64_t kD = 64, kE = 8, kK = 2, kF = 96;
  for (const DType dtype : kRowTypes) {
    for (const std::int64_t n : Cases<std::int64_t>({0, 1, 33, 1000}, {33})) {
      for (const std::int64_t max_tokens : {n, n / 4}) {
        for (const bool on_input : {false, true}) {
          SCOPED_TRACE(std::string(DTypeName(dtype)) + " N " + std::to_string(n) + " max_tokens " +
                       std::to_string(max_tokens) + (on_input ? " weight on input" : ""));
          const HostArray rows = HostArray::Normal(dtype, n * kD, 81);
          const HostArray gate_up = HostArray::Normal(dtype, kE * 2 * kF * kD, 82, 0.2);
          const HostArray down = HostArray::Normal(dtype, kE * kD * kF, 83, 0.2);
          std::vector<std::int32_t> ids = TestIds(n, kE, kK, n == 1000);
          std::vector<float> weights(ids.size());
          Random random(84);
          for (float& weight : weights) weight = static_cast<float>(random.Uniform());
          FusedMoeForwardArgs f = {.n = n, .d = kD, .e = kE, .k = kK, .f = kF, .weight_on_input = on_input};
          f.dtype = f.out_dtype = dtype;

          const DeviceArray<std::byte> device_rows(rows.bytes), device_gate_up(gate_up.bytes), device_down(down.bytes);
          const DeviceArray<std::byte> out(BytesOf(dtype, n * kD));
          const DeviceArray<std::int32_t> device_ids(ids), overflow(1);
          const DeviceArray<float> device_weights(weights);
          f.rows = device_rows.data(), f.ids = device_ids.data(), f.weights = device_weights.data();
          f.gate_up = device_gate_up.data(), f.down = device_down.data(), f.out = out.data();
          const cuda::BatchedMoeForwardArgs args = {
              .forward = f, .max_tokens = max_tokens, .overflow = overflow.data()};
          EXPERTD_ASSERT_OK(cuda::BatchedMoeForward(args, *cublas_, DeviceWorkspace::For(args), {}));

          EXPECT_EQ(overflow.Host()[0], DropOverCapacity(ids, kE, max_tokens));
          HostArray want(dtype, n * kD);
          f.rows = rows.bytes.data(), f.ids = ids.data(), f.weights = weights.data();
          f.gate_up = gate_up.bytes.data(), f.down = down.bytes.data(), f.out = want.bytes.data();
          EXPERTD_ASSERT_OK(reference::FusedMoeForward(f));
          EXPECT_CLOSE(Fetch(out, dtype), want, dtype == DType::kBF16 ? 1e-2 : 5e-6);
        }
      }
    }
  }
}

TEST_F(BatchedGpuTest, WhatCannotBeIsRefused) {
  std::int32_t number = 0;
  cuda::BatchedMoeForwardArgs args = {.forward = {.n = 0, .d = 8, .e = 2, .k = 1, .f = 8}, .overflow = &number};
  args.max_tokens = 1;
  EXPECT_EQ(cuda::BatchedMoeForward(args, *cublas_, {}, {}).code(), absl::StatusCode::kInvalidArgument);
  args.max_tokens = 0, args.overflow = nullptr;
  EXPECT_EQ(cuda::BatchedMoeForward(args, *cublas_, {}, {}).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace expertd::testing
