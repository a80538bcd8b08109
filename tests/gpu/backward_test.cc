// moe_forward with what it saves, moe_backward, fused_router_grad: against the reference's gradients in double, which
// are themselves held against central differences.
#include "kernels/reference/backward.h"

#include <algorithm>
#include <iterator>

#include "absl/types/span.h"
#include "kernels/cuda/moe_backward.h"
#include "tests/gpu/gpu_test.h"

namespace expertd::testing {
namespace {

using BackwardGpuTest = GpuTest;
using cuda::Recompute;

struct Case {
  const char* name;
  std::int64_t n, d, e, k, f;
  RoutingRule rule;
  Activation activation = Activation::kSilu;
};
const Case kAllCases[] = {
    {"softmax", 33, 64, 8, 2, 96, {.renormalise = Renormalise::kSumPlusEps}},
    {"not renormalised, several tiles", 300, 136, 4, 2, 72, {.scale = 2.0f}, Activation::kGelu},
    {"many experts without rows", 17, 72, 160, 6, 40, {.score = Score::kSigmoid}, Activation::kGeluTanh},
    {"softmax of the chosen, odd sizes", 40, 33, 5, 2, 17, {.score = Score::kRaw, .weigh = Weigh::kSoftmaxOfChosen}},
    {"weight on input",
     65,
     64,
     6,
     1,
     64,
     {.score = Score::kRaw, .weigh = Weigh::kSigmoidOfChosen, .weight_on_input = true}},
    {"one row", 1, 64, 8, 2, 64, {}, Activation::kRelu2},
};
const Case kSmallCases[] = {
    {"softmax, a tail", 9, 72, 4, 2, 40, {.renormalise = Renormalise::kSumPlusEps}},
    {"softmax of the chosen, odd sizes", 5, 33, 5, 2, 17, {.score = Score::kRaw, .weigh = Weigh::kSoftmaxOfChosen}},
    {"weight on input",
     6,
     64,
     3,
     1,
     64,
     {.score = Score::kRaw, .weigh = Weigh::kSigmoidOfChosen, .weight_on_input = true}},
};
absl::Span<const Case> AllCases() { return SmallTests() ? absl::MakeConstSpan(kSmallCases) : kAllCases; }

std::vector<double> Doubles(const HostArray& array) {
  std::vector<double> values(static_cast<std::size_t>(array.size()));
  for (std::int64_t i = 0; i < array.size(); ++i) values[i] = array.in()[i];
  return values;
}
std::vector<double> Doubles(const std::vector<float>& values) { return {values.begin(), values.end()}; }

// ||got - want|| / ||want||.
double Distance(const std::vector<double>& got, const std::vector<double>& want) {
  EXPECT_EQ(got.size(), want.size());
  return RelativeError(reference::In(got), reference::In(want), static_cast<std::int64_t>(want.size()));
}

// A problem in double whose numbers are exact in `dtype`, and the same on the device.
struct Problem {
  reference::MoeProblem host;
  reference::MoeForwardResult forward;
  std::vector<double> grad_out;
  FusedMoeForwardArgs args;
  DeviceArray<std::byte> rows, gate_up, down, grad, out;
  DeviceArray<float> logits, weights;
  DeviceArray<std::int32_t> ids;

  static DeviceArray<std::byte> Draw(DType dtype, std::int64_t count, std::uint64_t seed, double scale,
                                     std::vector<double>& values) {
    const HostArray array = HostArray::Normal(dtype, count, seed, scale);
    values = Doubles(array);
    return DeviceArray<std::byte>(array.bytes);
  }
  static DeviceArray<float> DrawLogits(std::int64_t count, std::vector<double>& values) {
    const HostArray array = HostArray::Normal(DType::kF32, count, 74);
    values = Doubles(array);
    return DeviceArray<float>(std::vector<float>(values.begin(), values.end()));
  }
  reference::MoeForwardResult Forward() const {
    absl::StatusOr<reference::MoeForwardResult> result = reference::MoeForward(host);
    EXPECT_TRUE(result.ok()) << result.status();
    return *std::move(result);
  }

  Problem(const Case& c, DType dtype)
      : host{.n = c.n, .d = c.d, .e = c.e, .k = c.k, .f = c.f, .rule = c.rule, .activation = c.activation},
        rows(Draw(dtype, c.n * c.d, 70, 1.0, host.rows)),
        gate_up(Draw(dtype, c.e * 2 * c.f * c.d, 71, 0.2, host.gate_up)),
        down(Draw(dtype, c.e * c.d * c.f, 72, 0.2, host.down)),
        grad(Draw(dtype, c.n * c.d, 73, 1.0, grad_out)),
        out(BytesOf(dtype, c.n * c.d)),
        logits(DrawLogits(c.n * c.e, host.logits)),
        weights(c.n * c.k),
        ids(c.n * c.k) {
    forward = Forward();
    const FusedTopkRoutingArgs topk = {.n = c.n,
                                       .e = c.e,
                                       .k = c.k,
                                       .rule = c.rule,
                                       .logits = logits.data(),
                                       .weights = weights.data(),
                                       .ids = ids.data()};
    const absl::Status status = cuda::FusedTopkRouting(topk, {});
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(ids.Host(), forward.topk_ids);
    args = {.n = c.n,
            .d = c.d,
            .e = c.e,
            .k = c.k,
            .f = c.f,
            .activation = c.activation,
            .weight_on_input = c.rule.weight_on_input,
            .dtype = dtype,
            .out_dtype = dtype,
            .rows = rows.data(),
            .ids = ids.data(),
            .weights = weights.data(),
            .gate_up = gate_up.data(),
            .down = down.data(),
            .out = out.data()};
  }
};

// Everything that backward answers, fetched.
struct Gradients {
  std::vector<std::byte> rows, gate_up, down;
  std::vector<float> weights;
  bool operator==(const Gradients&) const = default;
};

Gradients Backward(const Problem& p, Recompute recompute, DType w_dtype) {
  const FusedMoeForwardArgs& f = p.args;
  const DeviceWorkspace saved(cuda::SavedBytes(f, recompute));
  {
    const DeviceWorkspace workspace(cuda::MoeForwardWorkspaceBytes(f, recompute));
    const absl::Status status = cuda::MoeForward(f, recompute, saved, workspace, {});
    EXPECT_TRUE(status.ok()) << status;
    EXPERTD_CHECK_CUDA(cudaDeviceSynchronize());
  }
  const DeviceArray<std::byte> rows(BytesOf(f.dtype, f.n * f.d)), gate_up(BytesOf(w_dtype, f.e * 2 * f.f * f.d));
  const DeviceArray<std::byte> down(BytesOf(w_dtype, f.e * f.d * f.f));
  const DeviceArray<float> weights(f.n * f.k);
  const cuda::MoeBackwardArgs args = {.forward = f,
                                      .recompute = recompute,
                                      .w_dtype = w_dtype,
                                      .grad_out = p.grad.data(),
                                      .grad_rows = rows.data(),
                                      .grad_weights = weights.data(),
                                      .grad_gate_up = gate_up.data(),
                                      .grad_down = down.data()};
  const absl::Status status = cuda::MoeBackward(args, saved, DeviceWorkspace::For(args), {});
  EXPECT_TRUE(status.ok()) << status;
  return {rows.Host(), gate_up.Host(), down.Host(), weights.Host()};
}

TEST_F(BackwardGpuTest, EveryGradientIsTheReference) {
  for (const Case& c : AllCases()) {
    for (const DType dtype : kRowTypes) {
      SCOPED_TRACE(std::string(c.name) + " " + std::string(DTypeName(dtype)));
      const Problem p(c, dtype);
      const absl::StatusOr<reference::MoeGradients> want = reference::MoeBackward(p.host, p.forward, p.grad_out);
      ASSERT_TRUE(want.ok()) << want.status();
      // bf16 rounds the first product, the activation, and three gradients on the way.
      const double tolerance = dtype == DType::kBF16 ? 1.2e-2 : 1e-5;
      for (const DType w_dtype : kRowTypes) {
        const Gradients got = Backward(p, Recompute::kNothing, w_dtype);
        EXPECT_LE(Distance(Doubles(HostArray(dtype, got.rows)), want->rows), tolerance);
        EXPECT_LE(Distance(Doubles(got.weights), want->topk_weights), tolerance);
        const double w_tolerance = std::max(tolerance, Tolerance(w_dtype));
        EXPECT_LE(Distance(Doubles(HostArray(w_dtype, got.gate_up)), want->gate_up), w_tolerance);
        EXPECT_LE(Distance(Doubles(HostArray(w_dtype, got.down)), want->down), w_tolerance);
      }
      EXPECT_LE(Distance(Doubles(HostArray(dtype, p.out.Host())), p.forward.out), tolerance);
    }
  }
}

TEST_F(BackwardGpuTest, RecomputingSavesMemoryAndChangesNoBit) {
  for (const Case& c : AllCases()) {
    SCOPED_TRACE(c.name);
    const Problem p(c, DType::kBF16);
    EXPECT_LT(cuda::SavedBytes(p.args, Recompute::kActivations), cuda::SavedBytes(p.args, Recompute::kNothing));
    EXPECT_TRUE(Backward(p, Recompute::kActivations, DType::kF32) == Backward(p, Recompute::kNothing, DType::kF32));
  }
}

TEST_F(BackwardGpuTest, TheForwardHasTheBitsOfTheFusedOne) {
  const Problem p(AllCases()[0], DType::kBF16);
  const absl::Status status = cuda::FusedMoeForward(p.args, DeviceWorkspace::For(p.args), {});
  ASSERT_TRUE(status.ok()) << status;
  const std::vector<std::byte> want = p.out.Host();
  EXPERTD_CHECK_CUDA(cudaMemset(p.out.data(), 0x7e, p.out.Bytes()));
  Backward(p, Recompute::kNothing, DType::kF32);
  EXPECT_TRUE(p.out.Host() == want);
}

// Slots that are not held have no gradient and give none: the same as a layer without those slots' weights.
TEST_F(BackwardGpuTest, SlotsThatAreNotHeldCountAsZero) {
  const Problem p(AllCases()[0], DType::kF32);
  std::vector<std::int32_t> ids = p.ids.Host();
  for (std::size_t s = 1; s < ids.size(); s += 3) ids[s] = -1;
  EXPERTD_CHECK_CUDA(cudaMemcpy(p.ids.data(), ids.data(), p.ids.Bytes(), cudaMemcpyHostToDevice));
  const Gradients holes = Backward(p, Recompute::kNothing, DType::kF32);
  // The same in the reference: weights of those slots are 0.
  reference::MoeForwardResult forward = p.forward;
  for (std::size_t s = 1; s < ids.size(); s += 3) forward.topk_weights[s] = 0;
  const absl::StatusOr<reference::MoeGradients> want = reference::MoeBackward(p.host, forward, p.grad_out);
  ASSERT_TRUE(want.ok()) << want.status();
  EXPECT_LE(Distance(Doubles(HostArray(DType::kF32, holes.gate_up)), want->gate_up), 1e-5);
  EXPECT_LE(Distance(Doubles(HostArray(DType::kF32, holes.down)), want->down), 1e-5);
  EXPECT_LE(Distance(Doubles(HostArray(DType::kF32, holes.rows)), want->rows), 1e-5);
  for (std::size_t s = 0; s < ids.size(); ++s) {
    EXPECT_TRUE(ids[s] >= 0 || holes.weights[s] == 0.0f) << s;
  }
}

TEST_F(BackwardGpuTest, WithoutRowsWeightsGetZeros) {
  Case none = AllCases()[0];
  none.n = 0;
  const Gradients got = Backward(Problem(none, DType::kBF16), Recompute::kNothing, DType::kF32);
  EXPECT_EQ(std::count(got.gate_up.begin(), got.gate_up.end(), std::byte{0}), std::ssize(got.gate_up));
  EXPECT_EQ(std::count(got.down.begin(), got.down.end(), std::byte{0}), std::ssize(got.down));
}

TEST_F(BackwardGpuTest, RouterGradIsTheReference) {
  for (const Case& c : AllCases()) {
    SCOPED_TRACE(c.name);
    const Problem p(c, DType::kF32);
    const absl::StatusOr<reference::MoeGradients> want = reference::MoeBackward(p.host, p.forward, p.grad_out);
    ASSERT_TRUE(want.ok()) << want.status();
    const DeviceArray<float> grad_weights(std::vector<float>(want->topk_weights.begin(), want->topk_weights.end()));
    const DeviceArray<float> grad_logits(c.n * c.e);
    const cuda::RouterGradArgs args = {.n = c.n,
                                       .e = c.e,
                                       .k = c.k,
                                       .rule = c.rule,
                                       .logits = p.logits.data(),
                                       .ids = p.ids.data(),
                                       .grad_weights = grad_weights.data(),
                                       .grad_logits = grad_logits.data()};
    EXPERTD_ASSERT_OK(cuda::FusedRouterGrad(args, {}));
    EXPECT_LE(Distance(Doubles(grad_logits.Host()), want->logits), 1e-5);
  }
}

TEST_F(BackwardGpuTest, WhatCannotBeIsRefused) {
  const cuda::RouterGradArgs mixer = {
      .n = 0, .e = 8, .k = 2, .rule = {.score = Score::kRaw, .weigh = Weigh::kSparseMixer}};
  cuda::RouterGradArgs with_row = mixer;
  float number = 0;
  std::int32_t id = 0;
  with_row.n = 1, with_row.logits = &number, with_row.grad_weights = &number, with_row.grad_logits = &number;
  with_row.ids = &id;
  EXPECT_EQ(cuda::FusedRouterGrad(with_row, {}).code(), absl::StatusCode::kInvalidArgument);
  const Problem p(AllCases()[0], DType::kBF16);
  const DeviceWorkspace saved(cuda::SavedBytes(p.args, Recompute::kActivations));
  const cuda::MoeBackwardArgs args = {
      .forward = p.args, .grad_out = p.grad.data(), .grad_rows = p.out.data(), .grad_weights = p.weights.data()};
  EXPECT_EQ(cuda::MoeBackward(args, saved, DeviceWorkspace::For(args), {}).code(), absl::StatusCode::kInvalidArgument)
      << "what another forward saved is too little";
}

}  // namespace
}  // namespace expertd::testing
