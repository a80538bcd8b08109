// fused_gather_reduce, fused_weighted_scatter, fused_routing_weight_grad.
#include <algorithm>
#include <numeric>

#include "tests/gpu/gpu_test.h"

namespace expertd::testing {
namespace {

using RowsGpuTest = GpuTest;

// Rows of [R] for S slots: distinct, in random order, with holes; R is larger than S.
std::vector<std::int32_t> SlotRows(std::int64_t slots, std::int64_t r, bool holes) {
  std::vector<std::int32_t> rows(static_cast<std::size_t>(r));
  std::iota(rows.begin(), rows.end(), 0);
  Random random(21);
  for (std::int64_t i = r - 1; i > 0; --i) std::swap(rows[i], rows[random.Below(i + 1)]);
  rows.resize(static_cast<std::size_t>(slots));
  for (std::size_t s = 2; holes && s < rows.size(); s += 5) rows[s] = -1;
  return rows;
}

struct Problem {
  std::int64_t n, d, k, r;
  DType dtype;
  std::vector<std::int32_t> slot_row;
  std::vector<float> weights;
};

// Calls body(problem) over sizes, odd and even row widths, and element types.
template <typename Body>
void ForEachProblem(const Body& body) {
  for (const DType dtype : kRowTypes) {
    for (const std::int64_t n : RowCounts()) {
      for (const std::int64_t k : Cases<std::int64_t>({1, 2, 8, 11}, {11})) {
        for (const std::int64_t d : Cases<std::int64_t>({1, 33, 40, 520}, {33, 40})) {
          if (n * k * d > 4000000) continue;
          SCOPED_TRACE(std::string(DTypeName(dtype)) + " N " + std::to_string(n) + " K " + std::to_string(k) + " D " +
                       std::to_string(d));
          const std::int64_t r = n * k + 3;
          Problem problem = {n, d, k, r, dtype, SlotRows(n * k, r, n % 2 == 1), std::vector<float>(n * k)};
          Random random(22);
          for (float& weight : problem.weights) weight = static_cast<float>(random.Uniform());
          body(problem);
        }
      }
    }
  }
}

TEST_F(RowsGpuTest, GatherReduceIsTheReference) {
  ForEachProblem([](const Problem& p) {
    const HostArray expert_out = HostArray::Normal(p.dtype, p.r * p.d, 31);
    const DeviceArray<std::byte> device_expert_out(expert_out.bytes);
    const DeviceArray<std::int32_t> slot_row(p.slot_row);
    const DeviceArray<float> weights(p.weights);
    for (const DType out_dtype : kRowTypes) {
      for (const bool weighted : {true, false}) {
        FusedGatherReduceArgs args = {.n = p.n, .d = p.d, .k = p.k, .r = p.r, .dtype = p.dtype, .out_dtype = out_dtype};
        HostArray want(out_dtype, p.n * p.d);
        args.expert_out = expert_out.bytes.data(), args.slot_row = p.slot_row.data();
        args.weights = weighted ? p.weights.data() : nullptr, args.out = want.bytes.data();
        EXPERTD_ASSERT_OK(reference::FusedGatherReduce(args));
        const DeviceArray<std::byte> out(static_cast<std::int64_t>(want.bytes.size()));
        args.expert_out = device_expert_out.data(), args.slot_row = slot_row.data();
        args.weights = weighted ? weights.data() : nullptr, args.out = out.data();
        EXPERTD_ASSERT_OK(cuda::FusedGatherReduce(args, {}));
        EXPECT_CLOSE(Fetch(out, out_dtype), want, Tolerance(out_dtype));
      }
    }
  });
}

void ExpectWeightedScatter(const Problem& p) {
  FusedWeightedScatterArgs args = {.n = p.n, .d = p.d, .k = p.k, .r = p.r, .dtype = p.dtype};
  const HostArray grad = HostArray::Normal(p.dtype, p.n * p.d, 32);
  HostArray want(p.dtype, p.r * p.d);
  args.grad_out = grad.bytes.data(), args.slot_row = p.slot_row.data(), args.weights = p.weights.data();
  args.grad_expert = want.bytes.data();
  EXPERTD_ASSERT_OK(reference::FusedWeightedScatter(args));
  const DeviceArray<std::byte> device_grad(grad.bytes), out(static_cast<std::int64_t>(want.bytes.size()));
  const DeviceArray<std::int32_t> slot_row(p.slot_row);
  const DeviceArray<float> weights(p.weights);
  args.grad_out = device_grad.data(), args.slot_row = slot_row.data(), args.weights = weights.data();
  args.grad_expert = out.data();
  EXPERTD_ASSERT_OK(cuda::FusedWeightedScatter(args, DeviceWorkspace::For(args), {}));
  EXPECT_CLOSE(Fetch(out, p.dtype), want, Tolerance(p.dtype));
}

TEST_F(RowsGpuTest, WeightedScatterIsTheReference) { ForEachProblem(ExpectWeightedScatter); }

// More rows of 16 KiB than the shared memory of a Hopper device holds, so that they take turns there.
TEST_F(RowsGpuTest, WeightedScatterOfManyLargeRows) {
  const std::int64_t n = 3001, k = 2, r = n * k + 900;
  ExpectWeightedScatter({n, 4096, k, r, DType::kF32, SlotRows(n * k, r, true), std::vector<float>(n * k, 0.75f)});
}

// The two ways to find the rows that nobody names meet at 2048 slots.
TEST_F(RowsGpuTest, WeightedScatterClearsWhatManySlotsDoNotName) {
  for (const std::int64_t slots : Cases<std::int64_t>({2048, 2049, 70000}, {2049})) {
    FusedWeightedScatterArgs args = {.n = slots, .d = 8, .k = 1, .r = slots + 20000, .dtype = DType::kF32};
    const std::vector<std::int32_t> slot_row = SlotRows(slots, args.r, true);
    const HostArray grad = HostArray::Normal(DType::kF32, slots * 8, 35);
    HostArray want(DType::kF32, args.r * 8);
    args.grad_out = grad.bytes.data(), args.slot_row = slot_row.data(), args.grad_expert = want.bytes.data();
    EXPERTD_ASSERT_OK(reference::FusedWeightedScatter(args));
    const DeviceArray<std::byte> device_grad(grad.bytes), out(static_cast<std::int64_t>(want.bytes.size()));
    const DeviceArray<std::int32_t> device_slot_row(slot_row);
    args.grad_out = device_grad.data(), args.slot_row = device_slot_row.data(), args.grad_expert = out.data();
    EXPERTD_ASSERT_OK(cuda::FusedWeightedScatter(args, DeviceWorkspace::For(args), {}));
    EXPECT_EQ(out.Host(), want.bytes);
  }
}

TEST_F(RowsGpuTest, RoutingWeightGradIsTheReference) {
  ForEachProblem([](const Problem& p) {
    FusedRoutingWeightGradArgs args = {.n = p.n, .d = p.d, .k = p.k, .r = p.r, .dtype = p.dtype};
    const HostArray expert_out = HostArray::Normal(p.dtype, p.r * p.d, 33);
    const HostArray grad = HostArray::Normal(p.dtype, p.n * p.d, 34);
    HostArray want(DType::kF32, p.n * p.k);
    args.expert_out = expert_out.bytes.data(), args.grad_out = grad.bytes.data(), args.slot_row = p.slot_row.data();
    args.grad_weights = reinterpret_cast<float*>(want.bytes.data());
    EXPERTD_ASSERT_OK(reference::FusedRoutingWeightGrad(args));
    const DeviceArray<std::byte> device_expert_out(expert_out.bytes), device_grad(grad.bytes);
    const DeviceArray<std::byte> out(static_cast<std::int64_t>(want.bytes.size()));
    const DeviceArray<std::int32_t> slot_row(p.slot_row);
    args.expert_out = device_expert_out.data(), args.grad_out = device_grad.data(), args.slot_row = slot_row.data();
    args.grad_weights = reinterpret_cast<float*>(out.data());
    EXPERTD_ASSERT_OK(cuda::FusedRoutingWeightGrad(args, {}));
    EXPECT_CLOSE(Fetch(out, DType::kF32), want, 2e-6);
  });
}

}  // namespace
}  // namespace expertd::testing
