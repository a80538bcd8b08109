#include "tests/gpu/gpu_test.h"

namespace expertd::testing {
namespace {

using ActivationGpuTest = GpuTest;

constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGelu,  Activation::kGeluTanh,
                                       Activation::kRelu, Activation::kRelu2, Activation::kSwigluOai};
struct Shape {
  std::int64_t m, f;
};
std::vector<Shape> Shapes() {
  return Cases<Shape>({{0, 8}, {1, 1}, {1, 8}, {3, 7}, {31, 33}, {33, 64}, {129, 20}, {1000, 136}, {4097, 24}},
                      {{3, 7}, {33, 24}});
}

// Calls body(args) for every activation, layout, element type and shape, pointers still null.
template <typename Args, typename Body>
void ForEachCase(const Body& body) {
  for (const Activation activation : kActivations) {
    for (const bool interleaved : {false, true}) {
      for (const DType dtype : kRowTypes) {
        for (const Shape shape : Shapes()) {
          SCOPED_TRACE(std::string(ActivationName(activation)) + " " + std::string(DTypeName(dtype)) + " " +
                       std::to_string(shape.m) + " x " + std::to_string(shape.f) + (interleaved ? " interleaved" : ""));
          Args args;
          args.m = shape.m, args.f = shape.f;
          args.activation = activation;
          args.limit = 1.5f;  // so that random inputs meet the clamp
          args.interleaved = interleaved;
          args.dtype = dtype;
          body(args);
        }
      }
    }
  }
}

TEST_F(ActivationGpuTest, ForwardIsTheReference) {
  ForEachCase<ActivationForwardArgs>([](ActivationForwardArgs args) {
    const HostArray in = HostArray::Normal(args.dtype, args.m * 2 * args.f, 1, 2.0);
    HostArray want(args.dtype, args.m * args.f);
    args.in = in.bytes.data(), args.out = want.bytes.data();
    EXPERTD_ASSERT_OK(reference::ActivationForward(args));
    const DeviceArray<std::byte> device_in(in.bytes), out(static_cast<std::int64_t>(want.bytes.size()));
    args.in = device_in.data(), args.out = out.data();
    EXPERTD_ASSERT_OK(cuda::ActivationForward(args, {}));
    EXPECT_CLOSE(Fetch(out, args.dtype), want, Tolerance(args.dtype));
  });
}

TEST_F(ActivationGpuTest, BackwardIsTheReferenceAlsoInPlace) {
  ForEachCase<ActivationBackwardArgs>([](ActivationBackwardArgs args) {
    const HostArray in = HostArray::Normal(args.dtype, args.m * 2 * args.f, 1, 2.0);
    const HostArray grad = HostArray::Normal(args.dtype, args.m * args.f, 2);
    HostArray want(args.dtype, args.m * 2 * args.f);
    args.in = in.bytes.data(), args.grad_out = grad.bytes.data(), args.grad_in = want.bytes.data();
    EXPERTD_ASSERT_OK(reference::ActivationBackward(args));
    const DeviceArray<std::byte> device_in(in.bytes), device_grad(grad.bytes);
    const DeviceArray<std::byte> out(static_cast<std::int64_t>(want.bytes.size()));
    args.in = device_in.data(), args.grad_out = device_grad.data(), args.grad_in = out.data();
    EXPERTD_ASSERT_OK(cuda::ActivationBackward(args, {}));
    EXPECT_CLOSE(Fetch(out, args.dtype), want, Tolerance(args.dtype));
    args.grad_in = device_in.data();
    EXPERTD_ASSERT_OK(cuda::ActivationBackward(args, {}));
    EXPECT_EQ(device_in.Host(), out.Host());
  });
}

TEST_F(ActivationGpuTest, RowsThatAreNotAlignedAreHandled) {
  constexpr std::int64_t kM = 5, kF = 16;
  const HostArray in = HostArray::Normal(DType::kBF16, kM * 2 * kF + 1, 3);
  HostArray want(DType::kBF16, kM * kF);
  ActivationForwardArgs args = {.m = kM, .f = kF, .in = in.bytes.data() + 2, .out = want.bytes.data()};
  EXPERTD_ASSERT_OK(reference::ActivationForward(args));
  const DeviceArray<std::byte> device_in(in.bytes), out(static_cast<std::int64_t>(want.bytes.size()));
  args.in = device_in.data() + 2, args.out = out.data();
  EXPERTD_ASSERT_OK(cuda::ActivationForward(args, {}));
  EXPECT_CLOSE(Fetch(out, DType::kBF16), want, Tolerance(DType::kBF16));
}

TEST_F(ActivationGpuTest, NanGoesThroughAndStaysInItsPlace) {
  for (const Activation activation : kActivations) {
    std::vector<float> in(16, 0.5f);
    in[3] = std::nanf("");
    const DeviceArray<float> device_in(in), out(8);
    ActivationForwardArgs args = {.m = 1, .f = 8, .activation = activation, .dtype = DType::kF32};
    args.in = device_in.data(), args.out = out.data();
    EXPERTD_ASSERT_OK(cuda::ActivationForward(args, {}));
    const std::vector<float> got = out.Host();
    for (int i = 0; i < 8; ++i) EXPECT_EQ(std::isnan(got[i]), i == 3) << ActivationName(activation) << " " << i;
  }
}

}  // namespace
}  // namespace expertd::testing
