// The inner loops of every instruction set that this machine has, and those for AMX on emulated tiles: packing and
// decoding are exact, sums are close, and a row's bits do not depend on the rows beside it.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/layer_spec.h"
#include "tests/support/random.h"
#include "tests/support/random_layer.h"
#include "tests/unit/cpu/emulated_amx.h"

namespace expertd::cpu {
namespace {

struct Implementation {
  const char* name;
  Isa needs;
  const IsaKernels* kernels;
};
constexpr Implementation kImplementations[] = {
    {"avx2", Isa::kAvx2, &kAvx2Kernels},
    {"avx512", Isa::kAvx512, &kAvx512Kernels},
    {"avx512bf16", Isa::kAvx512Bf16, &kAvx512Bf16Kernels},
    {"amx", Isa::kAmx, &kAmxKernels},
    {"amx_emulated", Isa::kAvx512Bf16, &kEmulatedAmxKernels},
};

// A matrix packed as the kernels want it.
class Packed {
 public:
  explicit Packed(const WeightView& view) {
    matrix_.format = *PackedFormatOf(view.dtype, "test");
    matrix_.panels = RoundUp(view.out, kPanelOuts) / kPanelOuts;
    matrix_.k = view.in;
    memory_.resize(matrix_.bytes() / sizeof(Line) + 1);
    matrix_.data = reinterpret_cast<std::byte*>(memory_.data());
    for (std::int64_t p = 0; p < matrix_.panels; ++p) PackPanel(PlainPanel(view, {}, p), matrix_, p);
  }
  const PackedMatrix& matrix() const { return matrix_; }

 private:
  struct alignas(64) Line {
    std::byte bytes[64] = {};
  };
  std::vector<Line> memory_;
  PackedMatrix matrix_;
};

// rows[m, k] . matrix^T, every row padded with zeros; [m, panels * 64].
std::vector<float> Multiply(const IsaKernels& kernels, bool bf16, const PackedMatrix& matrix,
                            const std::vector<float>& rows, std::int64_t m) {
  const std::int64_t k = matrix.k, padded = PaddedK(k), outs = matrix.panels * kPanelOuts;
  std::vector<std::uint16_t> narrow(m * padded);
  std::vector<float> wide(m * padded), c(m * outs);
  for (std::int64_t r = 0; r < m; ++r) {
    for (std::int64_t i = 0; i < k; ++i) {
      wide[r * padded + i] = rows[r * k + i];
      narrow[r * padded + i] = F32ToBf16(rows[r * k + i]);
    }
  }
  const auto* x = bf16 ? reinterpret_cast<const std::byte*>(narrow.data()) : reinterpret_cast<std::byte*>(wide.data());
  for (std::int64_t p = 0; p < matrix.panels; ++p) {
    const PanelFunction panel = (bf16 ? kernels.bf16_rows : kernels.f32_rows)[static_cast<int>(matrix.format)];
    panel({.panel = matrix.panel(p),
           .k = padded,
           .rows = x,
           .row_pitch = padded * (bf16 ? 2 : 4),
           .m = m,
           .c = c.data() + p * kPanelOuts,
           .c_pitch = outs});
  }
  return c;
}

constexpr WeightFormat kFormats[] = {WeightFormat::kBF16, WeightFormat::kF16, WeightFormat::kF32,
                                     WeightFormat::kFp8Block128, WeightFormat::kMxfp4};

class KernelsTest : public ::testing::TestWithParam<Implementation> {
 protected:
  void SetUp() override {
    const absl::StatusOr<Isa> isa = ChooseIsa(IsaName(GetParam().needs));
    if (!isa.ok()) GTEST_SKIP() << isa.status().message();
  }
  const IsaKernels& kernels() const { return *GetParam().kernels; }
  // The row types that the kernels of a format take.
  std::vector<bool> RowTypes(PackedFormat format) const {
    if (kernels().bf16_rows[static_cast<int>(format)] == nullptr) return {false};
    return {false, true};
  }
  // Multiplies by unit vectors: every result is a weight, and must be it to the bit; or NaN, where the output has a NaN
  // among its weights (0 x NaN).
  void ExpectExact(const WeightView& view) const {
    const Packed packed(view);
    std::vector<float> unit_rows(view.in * view.in);
    for (std::int64_t i = 0; i < view.in; ++i) unit_rows[i * view.in + i] = 1.0f;
    std::vector<float> spread(view.out);  // 0, or NaN
    for (std::int64_t o = 0; o < view.out; ++o) {
      for (std::int64_t i = 0; i < view.in; ++i) spread[o] += 0.0f * static_cast<float>(view.At(o, i));
    }
    for (bool bf16 : RowTypes(packed.matrix().format)) {
      const std::vector<float> c = Multiply(kernels(), bf16, packed.matrix(), unit_rows, view.in);
      const std::int64_t outs = packed.matrix().panels * kPanelOuts;
      for (std::int64_t i = 0; i < view.in; ++i) {
        for (std::int64_t o = 0; o < outs; ++o) {
          const float want = o < view.out ? static_cast<float>(view.At(o, i)) + spread[o] : 0.0f;
          const float got = c[i * outs + o];
          ASSERT_TRUE(std::isnan(want) ? std::isnan(got) : got == want)
              << DTypeName(view.dtype) << "[" << o << ", " << i << "]: " << got << " for " << want;
        }
      }
    }
  }
};

TEST_P(KernelsTest, EveryFp8CodeIsExact) {
  constexpr std::int64_t kOuts = 70, kIn = 250;  // of 256 codes; a tail of outputs and of k, and two scale blocks
  std::vector<std::uint8_t> codes(kOuts * kIn);
  for (std::int64_t o = 0; o < kOuts; ++o) {
    for (std::int64_t i = 0; i < kIn; ++i) {
      const auto code = static_cast<std::uint8_t>(i + o);
      codes[o * kIn + i] = (code & 0x7f) == 0x7f ? 0 : code;  // a NaN would spread over its output
    }
  }
  codes[69 * kIn + 3] = 0xff;
  const float scales[] = {0.5f, 8.0f};
  ExpectExact({.data = codes.data(),
               .dtype = DType::kF8E4M3,
               .out = kOuts,
               .in = kIn,
               .out_stride = kIn,
               .block_scales = scales,
               .block_scale_stride = 2});
}

TEST_P(KernelsTest, EveryMxfp4CodeAndScaleIsExact) {
  constexpr std::int64_t kOuts = 256, kIn = 64;  // output o is scaled by the e8m0 codes o and 255 - o, but for NaN
  std::vector<std::uint8_t> codes(kOuts * kIn / 2), scales(kOuts * 2);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 37 + i / 256);
  for (std::int64_t o = 0; o < kOuts; ++o) {
    scales[2 * o] = static_cast<std::uint8_t>(o < 253 ? o : 127);  // 6 x 2^126 overflows f32
    scales[2 * o + 1] = static_cast<std::uint8_t>(o < 253 ? 252 - o : 127);
  }
  scales[2 * 255] = 255;
  ExpectExact({.data = codes.data(),
               .dtype = DType::kF4E2M1,
               .out = kOuts,
               .in = kIn,
               .out_stride = kIn,
               .group_scales = scales.data(),
               .group_scale_stride = 2});
}

TEST_P(KernelsTest, WiderFormatsAreExactAlsoTransposed) {
  constexpr std::int64_t kOuts = 33, kIn = 130;
  testing::Random random(9);
  std::vector<std::uint16_t> halves(kOuts * kIn);
  std::vector<float> floats(kOuts * kIn);
  for (std::size_t i = 0; i < halves.size(); ++i) {
    halves[i] = static_cast<std::uint16_t>(random.Next() & 0xbfff);  // finite in both; subnormals of f16 among them
    if ((halves[i] & 0x7f80) == 0) halves[i] |= 0x0080;              // but none of bf16: dot products flush those
    floats[i] = random.Normal();
  }
  for (bool transposed : {false, true}) {
    const std::int64_t out_stride = transposed ? 1 : kIn, in_stride = transposed ? kOuts : 1;
    for (DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      const void* data = dtype == DType::kF32 ? static_cast<const void*>(floats.data()) : halves.data();
      ExpectExact(
          {.data = data, .dtype = dtype, .out = kOuts, .in = kIn, .out_stride = out_stride, .in_stride = in_stride});
    }
  }
}

TEST_P(KernelsTest, SumsAreCloseAndEveryRowIsTheSameInEveryTile) {
  constexpr std::int64_t kRows = 37, kOuts = 80;
  for (WeightFormat format : kFormats) {
    for (std::int64_t k : {32, 96, 128, 160, 416, 1088}) {
      LayerSpec spec = testing::SimpleSpec(/*hidden_size=*/kOuts, 1, 1, /*intermediate_size=*/k);
      spec.expert_format = format;
      if (format == WeightFormat::kMxfp4) spec.hidden_size = 96;
      const auto source = testing::MakeRandomLayer(spec);
      const WeightView down = source->expert(0).down;
      const Packed packed(down);
      testing::Random random(k);
      std::vector<float> rows(kRows * k);
      for (float& x : rows) x = Bf16ToF32(F32ToBf16(random.Normal()));
      for (bool bf16 : RowTypes(packed.matrix().format)) {
        const std::string what = std::string(WeightFormatName(format)) + (bf16 ? ", bf16 rows" : ", f32 rows");
        const std::vector<float> all = Multiply(kernels(), bf16, packed.matrix(), rows, kRows);
        const std::int64_t outs = packed.matrix().panels * kPanelOuts;
        for (std::int64_t r : {0L, 5L, 36L}) {
          for (std::int64_t o = 0; o < down.out; ++o) {
            double want = 0, size = 0;
            for (std::int64_t i = 0; i < k; ++i) {
              const double product = rows[r * k + i] * down.At(o, i);
              want += product;
              size += std::abs(product);
            }
            ASSERT_NEAR(all[r * outs + o], want, 1e-6 * size) << what << ", k " << k << ", [" << r << ", " << o << "]";
          }
        }
        for (std::int64_t m = 1; m < kRows; ++m) {
          const std::vector<float> some =
              Multiply(kernels(), bf16, packed.matrix(), {rows.end() - m * k, rows.end()}, m);
          ASSERT_EQ(std::memcmp(some.data(), all.data() + (kRows - m) * outs, some.size() * sizeof(float)), 0)
              << what << ", k " << k << ": " << m << " rows";
        }
      }
    }
  }
}

double Activated(Activation activation, double gate, double up) {
  const auto sigmoid = [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
  switch (activation) {
    case Activation::kSilu:
      return gate * sigmoid(gate) * up;
    case Activation::kGelu:
      return 0.5 * gate * (1.0 + std::erf(gate / std::sqrt(2.0))) * up;
    case Activation::kGeluTanh:
      return 0.5 * gate * (1.0 + std::tanh(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate))) * up;
    case Activation::kRelu:
      return std::max(gate, 0.0) * up;
    case Activation::kRelu2:
      return std::max(gate, 0.0) * std::max(gate, 0.0) * up;
    case Activation::kSwigluOai: {
      const double g = std::min(gate, 7.0), u = std::max(-7.0, std::min(up, 7.0));
      return (u + 1.0) * g * sigmoid(1.702f * g);
    }
  }
  return 0;
}

TEST_P(KernelsTest, ActivationsAreCloseEverywhereAndPassNaNOn) {
  constexpr std::int64_t kRows = 400;
  for (Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh, Activation::kRelu,
                                Activation::kRelu2, Activation::kSwigluOai}) {
    std::vector<float> c(kRows * kPanelOuts), h(kRows * kPanelOuts / 2);
    for (std::int64_t r = 0; r < kRows; ++r) {
      for (int f = 0; f < 32; ++f) {
        c[r * 64 + f / 16 * 32 + f % 16] = static_cast<float>(r - 200) * 0.06f + 0.001f * static_cast<float>(f);
        c[r * 64 + f / 16 * 32 + 16 + f % 16] = static_cast<float>(f) * 0.7f - 9.0f;
      }
    }
    c[64 + 3] = NAN;
    c[64 + 16 + 5] = NAN;
    kernels().activate({.c = c.data(),
                        .m = kRows,
                        .activation = static_cast<int>(activation),
                        .limit = 7.0f,
                        .alpha = 1.702f,
                        .h = reinterpret_cast<std::byte*>(h.data()),
                        .h_pitch = 32 * sizeof(float)});
    for (std::int64_t r = 0; r < kRows; ++r) {
      for (int f = 0; f < 32; ++f) {
        if (r == 1 && (f == 3 || f == 5)) {
          EXPECT_TRUE(std::isnan(h[r * 32 + f])) << ActivationName(activation);
          continue;
        }
        const double gate = c[r * 64 + f / 16 * 32 + f % 16], up = c[r * 64 + f / 16 * 32 + 16 + f % 16];
        const double want = Activated(activation, gate, up);
        ASSERT_NEAR(h[r * 32 + f], want, 1e-6 * (1.0 + std::abs(gate * up) + std::abs(want)))
            << ActivationName(activation) << " " << gate;
      }
    }
  }
}

TEST_P(KernelsTest, ConversionsRoundAsTheHostDoesAndStopAtTheEnd) {
  testing::Random random(4);
  for (std::int64_t n : {0, 1, 7, 8, 9, 15, 16, 17, 33, 100}) {
    std::vector<float> in(n + 1), wide(n + 1, 77.0f);
    std::vector<std::uint16_t> narrow(n + 1, 0x7777);
    for (float& x : in) x = std::bit_cast<float>(static_cast<std::uint32_t>(random.Next()));
    if (n > 8) in[8] = NAN;
    kernels().convert({.in = in.data(), .out = narrow.data(), .out_bf16 = true, .n = n});
    kernels().convert({.in = narrow.data(), .out = wide.data(), .in_bf16 = true, .n = n});
    for (std::int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(narrow[i], F32ToBf16(in[i])) << in[i];
      ASSERT_EQ(std::bit_cast<std::uint32_t>(wide[i]) >> 16, narrow[i]) << in[i];
    }
    EXPECT_EQ(narrow[n], 0x7777);
    EXPECT_EQ(wide[n], 77.0f);
  }
}

TEST_P(KernelsTest, CombineSumsInTheGivenOrder) {
  const std::vector<float> a(19, 1e8f), b(19, 1.0f), c(19, -1e8f);
  const float* const terms[] = {a.data(), c.data(), b.data()};
  const float weights[] = {2.0f, 2.0f, 3.0f};
  std::vector<float> out(20, 77.0f);
  for (std::int64_t count : {0, 2, 3}) {
    kernels().combine({.terms = terms, .weights = weights, .count = count, .d = 19, .out = out.data()});
    for (int i = 0; i < 19; ++i) ASSERT_EQ(out[i], count == 3 ? 3.0f : 0.0f);
    EXPECT_EQ(out[19], 77.0f);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, KernelsTest, ::testing::ValuesIn(kImplementations),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace expertd::cpu
