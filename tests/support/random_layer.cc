#include "tests/support/random_layer.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "tests/support/random.h"

namespace expertd::testing {
namespace {

constexpr std::int64_t kRouterStream = 0, kSharedStream = 1, kFirstExpertStream = 2;

[[noreturn]] void Die(const std::string& message) {
  std::fprintf(stderr, "MakeRandomLayer: %s\n", message.c_str());
  std::abort();
}

DType DTypeOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBF16:
      return DType::kBF16;
    case WeightFormat::kF16:
      return DType::kF16;
    case WeightFormat::kF32:
      return DType::kF32;
    case WeightFormat::kFp8Block128:
      return DType::kF8E4M3;
    case WeightFormat::kMxfp4:
      return DType::kF4E2M1;
  }
  Die("unknown weight format");
}

std::uint16_t F32ToF16(float value) {  // of moderate values: truncated, subnormals become zero
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const int exponent = static_cast<int>(bits >> 23 & 255) - 127 + 15;
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  if (exponent <= 0) return sign;
  return static_cast<std::uint16_t>(sign | exponent << 10 | (bits >> 13 & 0x3ff));
}

// `count` elements of about standard deviation `sigma`. The codes of small formats are uniform and leave the magnitude
// to their scales: root mean square 112 for e4m3 and 2.93 for e2m1.
constexpr double kRmsF8E4M3 = 112, kRmsF4E2M1 = 2.93;

std::vector<std::byte> RandomElements(Random& random, DType dtype, std::int64_t count, double sigma) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(BytesOf(dtype, count)));
  auto* const data = bytes.data();
  const auto scale = static_cast<float>(sigma);
  switch (dtype) {
    case DType::kF32:
      for (std::int64_t i = 0; i < count; ++i) reinterpret_cast<float*>(data)[i] = random.Normal() * scale;
      break;
    case DType::kBF16:
      for (std::int64_t i = 0; i < count; ++i) {
        reinterpret_cast<std::uint16_t*>(data)[i] = F32ToBf16(random.Normal() * scale);
      }
      break;
    case DType::kF16:
      for (std::int64_t i = 0; i < count; ++i) {
        reinterpret_cast<std::uint16_t*>(data)[i] = F32ToF16(random.Normal() * scale);
      }
      break;
    default:
      for (std::byte& byte : bytes) {
        auto code = static_cast<std::uint8_t>(random.Next() >> 56);
        if (dtype == DType::kF8E4M3 && (code & 0x7f) == 0x7f) code ^= 1;  // not NaN
        byte = static_cast<std::byte>(code);
      }
  }
  return bytes;
}

// One weight matrix, or two of them that share memory, with its scales.
struct Matrix {
  std::vector<std::byte> elements;
  std::vector<float> block_scales;
  std::vector<std::uint8_t> group_scales;

  Matrix() = default;
  // [rows, cols]; fp8 blocks do not span the `parts` equal runs of rows.
  Matrix(Random& random, WeightFormat format, std::int64_t parts, std::int64_t rows, std::int64_t cols, double sigma)
      : elements(RandomElements(random, DTypeOf(format), parts * rows * cols, sigma)) {
    if (format == WeightFormat::kFp8Block128) {
      block_scales.resize(static_cast<std::size_t>(parts * ((rows + 127) / 128) * ((cols + 127) / 128)));
      for (float& s : block_scales) s = static_cast<float>(sigma / kRmsF8E4M3 * (0.5 + random.Uniform()));
    }
    if (format == WeightFormat::kMxfp4) {
      const int middle = 127 + static_cast<int>(std::lround(std::log2(sigma / kRmsF4E2M1)));
      group_scales.resize(static_cast<std::size_t>(parts * rows * cols / 32));
      for (std::uint8_t& s : group_scales) s = static_cast<std::uint8_t>(middle - 1 + random.Below(3));
    }
  }
};

// Where a logical [out, in] matrix starts inside a Matrix, and its strides, in elements.
struct Placement {
  std::int64_t start, out_stride, in_stride;
};

WeightView View(const Matrix& m, WeightFormat format, std::int64_t out, std::int64_t in, Placement at) {
  WeightView view{
      .dtype = DTypeOf(format), .out = out, .in = in, .out_stride = at.out_stride, .in_stride = at.in_stride};
  view.data = m.elements.data() + BytesOf(view.dtype, at.start);
  if (!m.block_scales.empty()) {
    view.block_scale_stride = (in + 127) / 128;
    view.block_scales = m.block_scales.data() + (at.start == 0 ? 0 : (out + 127) / 128 * view.block_scale_stride);
  }
  if (!m.group_scales.empty()) {
    view.group_scale_stride = at.out_stride / 32;
    view.group_scales = m.group_scales.data() + at.start / 32;
  }
  return view;
}

struct ExpertStorage {
  Matrix gate_up, down;
  std::vector<std::byte> gate_up_bias, down_bias;  // bf16
  ExpertWeights views;
};

ExpertStorage MakeExpert(Random random, std::int64_t d, std::int64_t f, WeightFormat format, bool bias,
                         WeightLayout layout, double scale) {
  ExpertStorage s;
  s.gate_up = Matrix(random, format, 2, f, d, scale / std::sqrt(static_cast<double>(d)));
  s.down = Matrix(random, format, 1, d, f, scale / std::sqrt(static_cast<double>(f)));
  const bool columns = layout == WeightLayout::kColumns || layout == WeightLayout::kInterleavedColumns;
  const bool interleaved = layout == WeightLayout::kInterleavedRows || layout == WeightLayout::kInterleavedColumns;
  const Placement kGate[] = {{0, d, 1}, {0, 2 * d, 1}, {0, 1, 2 * f}, {0, 2, 2 * f}};
  const Placement kUp[] = {{f * d, d, 1}, {d, 2 * d, 1}, {f, 1, 2 * f}, {1, 2, 2 * f}};
  s.views.gate = View(s.gate_up, format, f, d, kGate[static_cast<int>(layout)]);
  s.views.up = View(s.gate_up, format, f, d, kUp[static_cast<int>(layout)]);
  s.views.down = View(s.down, format, d, f, columns ? Placement{0, 1, d} : Placement{0, f, 1});
  if (bias) {
    s.gate_up_bias = RandomElements(random, DType::kBF16, 2 * f, 0.1);
    s.down_bias = RandomElements(random, DType::kBF16, d, 0.1);
    const std::byte* const up = s.gate_up_bias.data() + BytesOf(DType::kBF16, interleaved ? 1 : f);
    const std::int64_t stride = interleaved ? 2 : 1;
    s.views.gate_bias = {.data = s.gate_up_bias.data(), .size = f, .stride = stride};
    s.views.up_bias = {.data = up, .size = f, .stride = stride};
    s.views.down_bias = {.data = s.down_bias.data(), .size = d};
  }
  return s;
}

class RandomLayer final : public LayerSource {
 public:
  RandomLayer(const LayerSpec& spec, const RandomLayerOptions& options) : spec_(spec), options_(options) {
    experts_.resize(static_cast<std::size_t>(spec.held_experts));
    Random random(options.seed, kRouterStream);
    const std::int64_t d = spec.hidden_size, e = spec.num_experts;
    router_ =
        RandomElements(random, options.router_dtype, e * d, options.router_scale / std::sqrt(static_cast<double>(d)));
    router_bias_ = RandomElements(random, DType::kBF16, e, 0.5);
    correction_bias_ = RandomElements(random, DType::kF32, e, 0.1);
    shared_gate_ = RandomElements(random, DType::kBF16, d, 1.0 / std::sqrt(static_cast<double>(d)));
    if (spec.shared_intermediate_size > 0) {
      // Shared experts are plain matrices of their own in every family, and have no biases.
      shared_ = MakeExpert(Random(options.seed, kSharedStream), d, spec.shared_intermediate_size, spec.shared_format,
                           false, WeightLayout::kRows, options.weight_scale);
    }
  }

  const LayerSpec& spec() const override { return spec_; }

  RouterWeights router() const override {
    const std::int64_t d = spec_.hidden_size, e = spec_.num_experts;
    RouterWeights r;
    r.weight = {.data = router_.data(), .dtype = options_.router_dtype, .out = e, .in = d, .out_stride = d};
    if (spec_.routing.router_bias) r.bias = {.data = router_bias_.data(), .size = e};
    if (spec_.routing.correction_bias) {
      r.correction_bias = {.data = correction_bias_.data(), .dtype = DType::kF32, .size = e};
    }
    return r;
  }

  ExpertWeights expert(std::int64_t expert) const override {
    auto& slot = Slot(expert);
    if (slot == nullptr) slot = std::make_unique<ExpertStorage>(Generate(expert));
    return slot->views;
  }
  ExpertWeights shared() const override { return shared_.views; }
  VectorView shared_gate() const override { return {.data = shared_gate_.data(), .size = spec_.hidden_size}; }
  void Release(std::int64_t expert) const override { Slot(expert).reset(); }

  absl::StatusOr<std::string> Fingerprint() const override {
    Hash hash;
    const std::string canonical = spec_.Canonical();
    hash.Add(canonical.data(), canonical.size());
    for (const auto* bytes : {&router_, &router_bias_, &correction_bias_, &shared_gate_}) {
      hash.Add(bytes->data(), bytes->size());
    }
    hash.Add(shared_);
    for (std::int64_t e = 0; e < spec_.held_experts; ++e) hash.Add(Generate(spec_.first_expert + e));
    return absl::StrFormat("%016x", hash.value);
  }

 private:
  // FNV-1a over 8-byte words.
  struct Hash {
    std::uint64_t value = 0xcbf29ce484222325u;

    void Add(const void* data, std::size_t size) {
      for (std::size_t i = 0; i < size; i += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, static_cast<const char*>(data) + i, std::min<std::size_t>(8, size - i));
        value = (value ^ word) * 0x100000001b3u;
      }
    }
    void Add(const Matrix& m) {
      Add(m.elements.data(), m.elements.size());
      Add(m.block_scales.data(), m.block_scales.size() * sizeof(float));
      Add(m.group_scales.data(), m.group_scales.size());
    }
    void Add(const ExpertStorage& s) {
      Add(s.gate_up);
      Add(s.down);
      Add(s.gate_up_bias.data(), s.gate_up_bias.size());
      Add(s.down_bias.data(), s.down_bias.size());
    }
  };

  std::unique_ptr<ExpertStorage>& Slot(std::int64_t expert) const {
    const std::int64_t index = expert - spec_.first_expert;
    if (index < 0 || index >= spec_.held_experts) Die(absl::StrFormat("expert %d is not held", expert));
    return experts_[static_cast<std::size_t>(index)];
  }
  ExpertStorage Generate(std::int64_t expert) const {
    return MakeExpert(Random(options_.seed, static_cast<std::uint64_t>(kFirstExpertStream + expert)), spec_.hidden_size,
                      spec_.intermediate_size, spec_.expert_format, spec_.expert_bias, options_.layout,
                      options_.weight_scale);
  }

  const LayerSpec spec_;
  const RandomLayerOptions options_;
  std::vector<std::byte> router_, router_bias_, correction_bias_, shared_gate_;
  ExpertStorage shared_;
  mutable std::vector<std::unique_ptr<ExpertStorage>> experts_;  // distinct experts: distinct elements, no lock
};

}  // namespace

std::unique_ptr<LayerSource> MakeRandomLayer(const LayerSpec& spec, const RandomLayerOptions& options) {
  if (const absl::Status status = spec.Validate(); !status.ok()) Die(std::string(status.message()));
  const bool columns = options.layout == WeightLayout::kColumns || options.layout == WeightLayout::kInterleavedColumns;
  if (spec.expert_format == WeightFormat::kFp8Block128 && options.layout != WeightLayout::kRows) {
    Die("fp8 weights have the layout kRows only");
  }
  if (spec.expert_format == WeightFormat::kMxfp4 && columns) Die("mxfp4 weights have no column layouts");
  if (spec.expert_format == WeightFormat::kMxfp4 && (spec.hidden_size % 32 != 0 || spec.intermediate_size % 32 != 0)) {
    Die("mxfp4 weights need sizes that are multiples of 32");
  }
  if (spec.shared_format == WeightFormat::kMxfp4 &&
      (spec.hidden_size % 32 != 0 || spec.shared_intermediate_size % 32 != 0)) {
    Die("mxfp4 weights need sizes that are multiples of 32");
  }
  return std::make_unique<RandomLayer>(spec, options);
}

LayerSpec SimpleSpec(std::int64_t hidden_size, std::int64_t num_experts, std::int64_t experts_per_token,
                     std::int64_t intermediate_size) {
  LayerSpec spec;
  spec.model = "test";
  spec.family = "test";
  spec.hidden_size = hidden_size;
  spec.num_experts = num_experts;
  spec.experts_per_token = experts_per_token;
  spec.intermediate_size = intermediate_size;
  spec.held_experts = num_experts;
  spec.routing.renormalise = Renormalise::kSumPlusEps;
  return spec;
}

}  // namespace expertd::testing
