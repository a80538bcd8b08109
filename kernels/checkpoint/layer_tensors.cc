#include "kernels/checkpoint/layer_tensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace expertd {
namespace {

using Shape = std::vector<std::int64_t>;

constexpr std::int64_t kFp8Block = 128;
constexpr std::int64_t kMxfp4Group = 32;

// What stands before "layers.<i>." in a language model; others (an encoder, a draft head) are no layers of it.
constexpr absl::string_view kPrefixes[] = {"model.", "language_model.model.", "model.language_model.",
                                           "language_model.", ""};

std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::string BiasName(absl::string_view weight) {
  return absl::ConsumeSuffix(&weight, ".weight") ? absl::StrCat(weight, ".bias") : absl::StrCat(weight, "_bias");
}

bool NamesMoe(const TensorNames& names, absl::string_view rest) {
  if (rest == names.router) return true;
  if (!absl::ConsumePrefix(&rest, names.experts)) return false;
  if (names.layout == ExpertLayout::kSeparate) return !rest.empty() && absl::ascii_isdigit(rest[0]);
  return absl::StartsWith(rest, names.gate) || absl::StartsWith(rest, names.down);
}

absl::StatusOr<WeightFormat> FormatOf(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return WeightFormat::kBF16;
    case DType::kF16:
      return WeightFormat::kF16;
    case DType::kF32:
      return WeightFormat::kF32;
    case DType::kF8E4M3:
      return WeightFormat::kFp8Block128;
    default:
      return absl::InvalidArgumentError(
          absl::StrFormat("dtype %s is none of bf16, f16, f32, f8_e4m3", DTypeName(dtype)));
  }
}

bool IsPlain(DType dtype) { return dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF32; }

// Empty when e4m3 tensors have 128 x 128 block scales, as far as quantization_config says; else why not.
std::string WhyNoFp8(const nlohmann::json& quantization) {
  if (!quantization.is_object()) return "f8_e4m3 weights, but config.json has no quantization_config";
  const auto size = quantization.find("weight_block_size");
  if (size == quantization.end() || *size != nlohmann::json({kFp8Block, kFp8Block})) {
    return absl::StrFormat("quantization_config.weight_block_size is %s, only [128, 128] is supported",
                           size == quantization.end() ? "absent" : QuoteJson(*size));
  }
  const auto format = quantization.find("fmt");
  if (format != quantization.end() && *format != "e4m3") {
    return absl::StrCat("quantization_config.fmt is ", QuoteJson(*format), ", only e4m3 is supported");
  }
  return {};
}

absl::Status CheckQuantMethod(const nlohmann::json& quantization) {
  if (!quantization.is_object()) return absl::OkStatus();
  const auto method = quantization.find("quant_method");
  if (method != quantization.end() && (*method == "fp8" || *method == "mxfp4")) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrFormat("quantization_config.quant_method is %s, only fp8 (128 x 128 blocks) and mxfp4 are supported",
                      method == quantization.end() ? "absent" : QuoteJson(*method)));
}

class Resolver {
 public:
  Resolver(const TensorTable& table, const Family& family, const ModelConfig& config, std::string prefix, Copies copies)
      : table_(table), family_(family), config_(config), prefix_(std::move(prefix)), copies_(copies) {}

  absl::StatusOr<LayerTensors> Run(std::int64_t layer) {
    absl::StatusOr<LayerSpec> spec = ReadSpec(family_, config_, layer);
    if (!spec.ok()) return spec.status();
    layer_.spec = *std::move(spec);
    if (absl::Status status = CheckQuantMethod(config_.quantization()); !status.ok()) return status;
    ChooseNames();
    for (const auto step : {&Resolver::Router, &Resolver::Experts, &Resolver::Shared}) {
      if (absl::Status status = (this->*step)(); !status.ok()) return status;
    }
    return std::move(layer_);
  }

 private:
  const LayerSpec& spec() const { return layer_.spec; }
  bool Has(absl::string_view name) const { return table_.tensors.contains(absl::StrCat(prefix_, name)); }

  static absl::Status Wrong(const PlacedTensor& tensor, const std::string& name, absl::string_view reason,
                            absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    return absl::Status(code,
                        absl::StrCat(tensor.file->name(), ": tensor ", absl::Utf8SafeCEscape(name), ": ", reason));
  }
  // A tensor that is there, although by config.json it should not be.
  absl::Status Unexpected(absl::string_view name, absl::string_view reason) const {
    const std::string full = absl::StrCat(prefix_, name);
    return Wrong(table_.tensors.at(full), full, reason);
  }

  void ChooseNames() {
    const auto present = [&](const TensorNames* names) {
      if (names == nullptr) return false;
      if (names->layout == ExpertLayout::kSeparate) return Has(absl::StrCat(names->experts, "0.", names->gate));
      const std::string gate_up = absl::StrCat(names->experts, names->gate);
      return Has(gate_up) || Has(gate_up + "_blocks");
    };
    const auto found = std::find_if(family_.names.begin(), family_.names.end(), present);
    names_ = found == family_.names.end() ? family_.names[0] : *found;
  }

  absl::StatusOr<const PlacedTensor*> Find(const std::string& name) const {
    const auto found = table_.tensors.find(absl::StrCat(prefix_, name));
    if (found != table_.tensors.end()) return &found->second;
    return absl::InvalidArgumentError(absl::StrCat(table_.listing, ": tensor ", prefix_, name, ": missing"));
  }

  // Checks the shape and records `slice` (of `slices` equal ones along the first axis) of the tensor as a part.
  absl::StatusOr<TensorPart> Part(const std::string& role, const std::string& name, const Shape& shape,
                                  std::int64_t slices, std::int64_t slice, std::vector<TensorPart>* parts) {
    absl::StatusOr<const PlacedTensor*> found = Find(name);
    if (!found.ok()) return found.status();
    const PlacedTensor& tensor = **found;
    if (tensor.entry->shape != shape) {
      return Wrong(
          tensor, prefix_ + name,
          absl::StrFormat("shape %s, config.json asks for %s", ShapeText(tensor.entry->shape), ShapeText(shape)));
    }
    TensorPart part = {.role = role, .dtype = tensor.entry->dtype, .shape = shape, .file = tensor.file};
    part.bytes = tensor.entry->bytes / slices;
    part.data = tensor.entry->data + slice * part.bytes;
    if (slices > 1) part.shape.erase(part.shape.begin());
    parts->push_back(part);
    return part;
  }

  std::byte* Own(std::int64_t bytes) {
    layer_.owned.push_back(std::make_unique<std::uint64_t[]>(static_cast<std::size_t>((bytes + 7) / 8)));
    return reinterpret_cast<std::byte*>(layer_.owned.back().get());
  }

  // The part's bytes at a multiple of its element size.
  const std::byte* Aligned(const TensorPart& part) {
    const std::uintptr_t unit = std::max(BitsOf(part.dtype) / 8, 1);
    if (copies_ == Copies::kNone || reinterpret_cast<std::uintptr_t>(part.data) % unit == 0) return part.data;
    std::byte* copy = Own(part.bytes);
    std::memcpy(copy, part.data, static_cast<std::size_t>(part.bytes));
    return copy;
  }

  // A vector of bf16, f16 or f32.
  absl::StatusOr<VectorView> Vector(const std::string& role, const std::string& name, const Shape& shape,
                                    std::int64_t slices, std::int64_t slice, std::vector<TensorPart>* parts) {
    absl::StatusOr<TensorPart> part = Part(role, name, shape, slices, slice, parts);
    if (!part.ok()) return part.status();
    if (!IsPlain(part->dtype)) {
      return Wrong(**Find(name), prefix_ + name,
                   absl::StrFormat("dtype %s is none of bf16, f16, f32", DTypeName(part->dtype)));
    }
    const std::int64_t size = part->shape.back();
    return VectorView{.data = Aligned(*part), .dtype = part->dtype, .size = size};
  }

  // A matrix that is a tensor of its own. `format` is what its layer's other ones are, or empty for the first.
  absl::StatusOr<WeightView> Matrix(const std::string& role, const std::string& name, std::int64_t out, std::int64_t in,
                                    std::optional<WeightFormat>* format, std::vector<TensorPart>* parts) {
    absl::StatusOr<TensorPart> part = Part(role, name, {out, in}, 1, 0, parts);
    if (!part.ok()) return part.status();
    if (absl::Status status = CheckFormat(name, part->dtype, format); !status.ok()) return status;
    WeightView view = {
        .data = Aligned(*part), .dtype = part->dtype, .out = out, .in = in, .out_stride = in, .in_stride = 1};
    if (part->dtype == DType::kF8E4M3) {
      if (absl::Status status = BlockScales(role, name, &view, parts); !status.ok()) return status;
    }
    return view;
  }

  absl::Status CheckFormat(const std::string& name, DType dtype, std::optional<WeightFormat>* format) {
    const PlacedTensor& tensor = **Find(name);
    absl::StatusOr<WeightFormat> found = FormatOf(dtype);
    if (!found.ok()) return Wrong(tensor, prefix_ + name, found.status().message());
    if (*found == WeightFormat::kFp8Block128) {
      const std::string why = WhyNoFp8(config_.quantization());
      if (!why.empty()) return absl::UnimplementedError(why);
    }
    if (!format->has_value()) *format = *found;
    if (**format == *found) return absl::OkStatus();
    return Wrong(
        tensor, prefix_ + name,
        absl::StrFormat("dtype %s, others of the same kind are %s", DTypeName(dtype), WeightFormatName(**format)));
  }

  absl::Status BlockScales(const std::string& role, const std::string& weight, WeightView* view,
                           std::vector<TensorPart>* parts) {
    const std::string name = weight + "_scale_inv";
    const std::int64_t rows = CeilDiv(view->out, kFp8Block), columns = CeilDiv(view->in, kFp8Block);
    absl::StatusOr<TensorPart> part = Part(role + ".scales", name, {rows, columns}, 1, 0, parts);
    if (!part.ok()) return part.status();
    const PlacedTensor& tensor = **Find(name);
    if (part->dtype != DType::kF32 && part->dtype != DType::kBF16) {
      return Wrong(tensor, prefix_ + name, absl::StrFormat("dtype %s is neither f32 nor bf16", DTypeName(part->dtype)));
    }
    view->block_scale_stride = columns;
    view->block_scales = reinterpret_cast<const float*>(part->data);
    if (copies_ == Copies::kNone) return absl::OkStatus();
    const std::byte* data = Aligned(*part);
    if (part->dtype == DType::kBF16) {
      auto* widened = reinterpret_cast<float*>(Own(rows * columns * 4));
      const auto* narrow = reinterpret_cast<const std::uint16_t*>(data);
      std::transform(narrow, narrow + rows * columns, widened, Bf16ToF32);
      data = reinterpret_cast<const std::byte*>(widened);
    }
    view->block_scales = reinterpret_cast<const float*>(data);
    for (std::int64_t i = 0; i < rows * columns; ++i) {
      if (std::isfinite(view->block_scales[i])) continue;
      return Wrong(tensor, prefix_ + name,
                   absl::StrFormat("[%d, %d]=%g is not finite", i / columns, i % columns, view->block_scales[i]));
    }
    return absl::OkStatus();
  }

  absl::Status Router() {
    std::optional<WeightFormat> format;
    const std::string router(names_->router);
    absl::StatusOr<WeightView> weight =
        Matrix("router", router, spec().num_experts, spec().hidden_size, &format, &layer_.parts);
    if (!weight.ok()) return weight.status();
    if (!IsPlain(weight->dtype)) {
      return Wrong(**Find(router), prefix_ + router, "a router in fp8 is not supported",
                   absl::StatusCode::kUnimplemented);
    }
    layer_.router.weight = *weight;

    const std::string bias = BiasName(router);
    if (spec().routing.router_bias) {
      auto view = Vector("router.bias", bias, {spec().num_experts}, 1, 0, &layer_.parts);
      if (!view.ok()) return view.status();
      layer_.router.bias = *view;
    } else if (Has(bias)) {
      return Unexpected(bias, absl::StrCat("family ", family_.model_type, " has no router bias"));
    }
    return CorrectionBias();
  }

  absl::Status CorrectionBias() {
    const auto& alternatives = names_->correction_bias;
    const auto found =
        std::find_if(alternatives.begin(), alternatives.end(), [&](auto name) { return !name.empty() && Has(name); });
    if (!spec().routing.correction_bias) {
      if (found == alternatives.end()) return absl::OkStatus();
      return Unexpected(*found, absl::StrCat("family ", family_.model_type, " has no correction bias"));
    }
    const std::string name(found == alternatives.end() ? alternatives[0] : *found);
    const std::int64_t experts = spec().num_experts;
    absl::StatusOr<const PlacedTensor*> tensor = Find(name);
    if (!tensor.ok()) return tensor.status();
    const Shape shape = (*tensor)->entry->shape.size() == 2 ? Shape{1, experts} : Shape{experts};
    auto view = Vector("router.correction_bias", name, shape, 1, 0, &layer_.parts);
    if (!view.ok()) return view.status();
    layer_.router.correction_bias = *view;
    return absl::OkStatus();
  }

  absl::Status Experts() {
    const auto experts = static_cast<std::size_t>(spec().num_experts);
    layer_.experts.resize(experts);
    layer_.expert_parts.resize(experts);
    const bool separate = names_->layout == ExpertLayout::kSeparate;
    const std::string gate = absl::StrCat(names_->experts, separate ? "0." : "", names_->gate);
    layer_.spec.expert_bias = family_.expert_bias || Has(BiasName(gate));
    if (separate) return SeparateExperts();
    return Has(gate + "_blocks") ? Mxfp4Experts() : StackedExperts();
  }

  absl::Status SeparateExperts() {
    std::optional<WeightFormat> format;
    for (std::int64_t e = 0; e < spec().num_experts; ++e) {
      if (absl::Status status = PlainExpert(absl::StrCat(names_->experts, e, "."), spec().intermediate_size, names_,
                                            &format, spec().expert_bias, &layer_.experts[static_cast<std::size_t>(e)],
                                            &layer_.expert_parts[static_cast<std::size_t>(e)]);
          !status.ok()) {
        return status;
      }
    }
    layer_.spec.expert_format = *format;
    const std::string extra = absl::StrCat(names_->experts, spec().num_experts, ".", names_->gate);
    if (!Has(extra)) return absl::OkStatus();
    return Unexpected(extra, absl::StrFormat("config.json says %d experts", spec().num_experts));
  }

  // Three matrices of one expert, with their biases.
  absl::Status PlainExpert(const std::string& at, std::int64_t width, const TensorNames* names,
                           std::optional<WeightFormat>* format, bool bias, ExpertWeights* expert,
                           std::vector<TensorPart>* parts) {
    const std::int64_t hidden = spec().hidden_size;
    const struct {
      const char* role;
      absl::string_view name;
      std::int64_t out, in;
      WeightView* weight;
      VectorView* bias;
    } matrices[] = {
        {"gate", names->gate, width, hidden, &expert->gate, &expert->gate_bias},
        {"up", names->up, width, hidden, &expert->up, &expert->up_bias},
        {"down", names->down, hidden, width, &expert->down, &expert->down_bias},
    };
    for (const auto& matrix : matrices) {
      const std::string name = absl::StrCat(at, matrix.name);
      auto weight = Matrix(matrix.role, name, matrix.out, matrix.in, format, parts);
      if (!weight.ok()) return weight.status();
      *matrix.weight = *weight;
      if (!bias) continue;
      auto vector = Vector(absl::StrCat(matrix.role, ".bias"), BiasName(name), {matrix.out}, 1, 0, parts);
      if (!vector.ok()) return vector.status();
      *matrix.bias = *vector;
    }
    return absl::OkStatus();
  }

  // Of the 2F rows of gate_up, which is row 0 of gate or up, and how far apart its rows are.
  struct HalfOfRows {
    std::int64_t first, step;
  };
  HalfOfRows Gate() const { return names_->interleaved ? HalfOfRows{0, 2} : HalfOfRows{0, 1}; }
  HalfOfRows Up() const { return names_->interleaved ? HalfOfRows{1, 2} : HalfOfRows{spec().intermediate_size, 1}; }

  // [rows, in], or [in, rows] by columns: element strides of the part of it that `half` names.
  static WeightView HalfView(const std::byte* data, DType dtype, HalfOfRows half, std::int64_t out, std::int64_t rows,
                             std::int64_t in, bool columns) {
    WeightView view = {.dtype = dtype, .out = out, .in = in};
    view.out_stride = half.step * (columns ? 1 : in);
    view.in_stride = columns ? rows : 1;
    view.data = data + BytesOf(dtype, half.first * (columns ? 1 : in));
    return view;
  }

  absl::Status StackedExperts() {
    const std::int64_t hidden = spec().hidden_size, width = spec().intermediate_size, experts = spec().num_experts;
    const bool columns = names_->layout == ExpertLayout::kStackedColumns;
    const std::string gate_up = absl::StrCat(names_->experts, names_->gate);
    const std::string down = absl::StrCat(names_->experts, names_->down);
    const Shape gate_up_shape = columns ? Shape{experts, hidden, 2 * width} : Shape{experts, 2 * width, hidden};
    const Shape down_shape = columns ? Shape{experts, width, hidden} : Shape{experts, hidden, width};
    std::optional<WeightFormat> format;
    for (std::int64_t e = 0; e < experts; ++e) {
      ExpertWeights& expert = layer_.experts[static_cast<std::size_t>(e)];
      auto& parts = layer_.expert_parts[static_cast<std::size_t>(e)];
      absl::StatusOr<TensorPart> wide = Part("gate_up", gate_up, gate_up_shape, experts, e, &parts);
      if (!wide.ok()) return wide.status();
      absl::StatusOr<TensorPart> narrow = Part("down", down, down_shape, experts, e, &parts);
      if (!narrow.ok()) return narrow.status();
      for (const auto& [name, part] : {std::pair(gate_up, &*wide), std::pair(down, &*narrow)}) {
        if (absl::Status status = CheckFormat(name, part->dtype, &format); !status.ok()) return status;
      }
      if (*format == WeightFormat::kFp8Block128) {
        return absl::UnimplementedError("fp8 experts stacked in one tensor are not supported");
      }
      const std::byte* data = Aligned(*wide);
      expert.gate = HalfView(data, wide->dtype, Gate(), width, 2 * width, hidden, columns);
      expert.up = HalfView(data, wide->dtype, Up(), width, 2 * width, hidden, columns);
      expert.down = HalfView(Aligned(*narrow), narrow->dtype, {0, 1}, hidden, hidden, width, columns);
      if (absl::Status status = StackedBiases(e, &expert, &parts); !status.ok()) return status;
    }
    layer_.spec.expert_format = *format;
    return absl::OkStatus();
  }

  absl::Status Mxfp4Experts() {
    const std::int64_t hidden = spec().hidden_size, width = spec().intermediate_size, experts = spec().num_experts;
    if (hidden % kMxfp4Group != 0 || width % kMxfp4Group != 0) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "config.json: hidden_size %d and intermediate_size %d must be multiples of 32 in mxfp4", hidden, width));
    }
    layer_.spec.expert_format = WeightFormat::kMxfp4;
    for (std::int64_t e = 0; e < experts; ++e) {
      ExpertWeights& expert = layer_.experts[static_cast<std::size_t>(e)];
      auto& parts = layer_.expert_parts[static_cast<std::size_t>(e)];
      if (absl::Status status = Mxfp4Matrix("gate_up", names_->gate, 2 * width, hidden, e, &parts,
                                            {{&expert.gate, Gate(), width}, {&expert.up, Up(), width}});
          !status.ok()) {
        return status;
      }
      if (absl::Status status =
              Mxfp4Matrix("down", names_->down, hidden, width, e, &parts, {{&expert.down, {0, 1}, hidden}});
          !status.ok()) {
        return status;
      }
      if (absl::Status status = StackedBiases(e, &expert, &parts); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  struct Half {
    WeightView* view;
    HalfOfRows rows;
    std::int64_t out;
  };

  absl::Status Mxfp4Matrix(const std::string& role, absl::string_view stem, std::int64_t rows, std::int64_t in,
                           std::int64_t expert, std::vector<TensorPart>* parts, std::initializer_list<Half> halves) {
    const std::int64_t experts = spec().num_experts, groups = in / kMxfp4Group;
    const std::string blocks = absl::StrCat(names_->experts, stem, "_blocks");
    const std::string scales = absl::StrCat(names_->experts, stem, "_scales");
    auto codes = Part(role, blocks, {experts, rows, groups, kMxfp4Group / 2}, experts, expert, parts);
    if (!codes.ok()) return codes.status();
    auto exponents = Part(role + ".scales", scales, {experts, rows, groups}, experts, expert, parts);
    if (!exponents.ok()) return exponents.status();
    for (const auto& [name, dtype] : {std::pair(blocks, codes->dtype), std::pair(scales, exponents->dtype)}) {
      if (dtype == DType::kU8 || (name == scales && dtype == DType::kE8M0)) continue;
      return Wrong(**Find(name), prefix_ + name, absl::StrFormat("dtype %s is not u8", DTypeName(dtype)));
    }
    const auto* exponent = reinterpret_cast<const std::uint8_t*>(exponents->data);
    if (copies_ == Copies::kMake) {
      const void* nan = std::memchr(exponent, 255, static_cast<std::size_t>(exponents->bytes));
      exponents->file->DropPages(exponents->data, exponents->bytes);
      if (nan != nullptr) {
        const std::int64_t at = static_cast<const std::uint8_t*>(nan) - exponent;
        return Wrong(**Find(scales), prefix_ + scales,
                     absl::StrFormat("[%d, %d, %d]=255 is not a number", expert, at / groups, at % groups));
      }
    }
    for (const Half& half : halves) {
      *half.view = HalfView(codes->data, DType::kF4E2M1, half.rows, half.out, rows, in, /*columns=*/false);
      half.view->group_scales = exponent + half.rows.first * groups;
      half.view->group_scale_stride = half.rows.step * groups;
    }
    return absl::OkStatus();
  }

  absl::Status StackedBiases(std::int64_t e, ExpertWeights* expert, std::vector<TensorPart>* parts) {
    if (!spec().expert_bias) return absl::OkStatus();
    const std::int64_t hidden = spec().hidden_size, width = spec().intermediate_size, experts = spec().num_experts;
    auto wide = Vector("gate_up.bias", BiasName(absl::StrCat(names_->experts, names_->gate)), {experts, 2 * width},
                       experts, e, parts);
    if (!wide.ok()) return wide.status();
    auto down = Vector("down.bias", BiasName(absl::StrCat(names_->experts, names_->down)), {experts, hidden}, experts,
                       e, parts);
    if (!down.ok()) return down.status();
    const auto half = [&](HalfOfRows rows) {
      VectorView view = *wide;
      view.data = static_cast<const std::byte*>(wide->data) + BytesOf(wide->dtype, rows.first);
      view.size = width;
      view.stride = rows.step;
      return view;
    };
    expert->gate_bias = half(Gate());
    expert->up_bias = half(Up());
    expert->down_bias = *down;
    return absl::OkStatus();
  }

  absl::Status Shared() {
    static constexpr TensorNames kProjections = {
        .gate = "gate_proj.weight", .up = "up_proj.weight", .down = "down_proj.weight"};
    const auto found = std::find_if(names_->shared.begin(), names_->shared.end(), [&](absl::string_view prefix) {
      return !prefix.empty() && Has(absl::StrCat(prefix, kProjections.gate));
    });
    const bool there = found != names_->shared.end();
    if (spec().shared_intermediate_size == 0) {
      if (!there) return absl::OkStatus();
      return Unexpected(absl::StrCat(*found, kProjections.gate), "config.json says that there is no shared expert");
    }
    const std::string at(there ? *found : names_->shared[0]);
    if (Has(BiasName(absl::StrCat(at, kProjections.gate)))) {
      return absl::UnimplementedError("a shared expert with biases is not supported");
    }
    std::optional<WeightFormat> format;
    if (absl::Status status = PlainExpert(at, spec().shared_intermediate_size, &kProjections, &format, /*bias=*/false,
                                          &layer_.shared, &layer_.parts);
        !status.ok()) {
      return status;
    }
    layer_.spec.shared_format = *format;
    if (!spec().shared_gated) {
      if (names_->shared_gate.empty() || !Has(names_->shared_gate)) return absl::OkStatus();
      return Unexpected(names_->shared_gate,
                        absl::StrCat("family ", family_.model_type, " does not gate its shared expert"));
    }
    auto gate = Vector("shared_gate", std::string(names_->shared_gate), {1, spec().hidden_size}, 1, 0, &layer_.parts);
    if (!gate.ok()) return gate.status();
    layer_.shared_gate = *gate;
    return absl::OkStatus();
  }

  const TensorTable& table_;
  const Family& family_;
  const ModelConfig& config_;
  const std::string prefix_;
  const Copies copies_;
  const TensorNames* names_ = nullptr;
  LayerTensors layer_;
};

}  // namespace

absl::StatusOr<std::map<std::int64_t, std::string>> FindMoeLayers(const TensorTable& table, const Family& family) {
  std::map<std::int64_t, std::string> layers;
  for (const auto& [name, tensor] : table.tensors) {
    for (const absl::string_view model : kPrefixes) {
      absl::string_view rest = name;
      if (!absl::ConsumePrefix(&rest, model) || !absl::ConsumePrefix(&rest, "layers.")) continue;
      const std::size_t dot = rest.find('.');
      std::int64_t layer = 0;
      if (dot == absl::string_view::npos || !absl::SimpleAtoi(rest.substr(0, dot), &layer) || layer < 0) continue;
      const bool moe = std::any_of(family.names.begin(), family.names.end(), [&](const TensorNames* names) {
        return names != nullptr && NamesMoe(*names, rest.substr(dot + 1));
      });
      if (!moe) continue;
      const std::string prefix = absl::StrCat(model, "layers.", rest.substr(0, dot), ".");
      const auto [at, added] = layers.emplace(layer, prefix);
      if (added || at->second == prefix) continue;
      return absl::InvalidArgumentError(absl::StrFormat("%s: tensor %s: layer %d is also at %s", tensor.file->name(),
                                                        absl::Utf8SafeCEscape(name), layer, at->second));
    }
  }
  return layers;
}

absl::StatusOr<LayerTensors> ResolveLayer(const TensorTable& table, const Family& family, const ModelConfig& config,
                                          std::int64_t layer, const std::string& prefix, Copies copies) {
  return Resolver(table, family, config, prefix, copies).Run(layer);
}

}  // namespace expertd
