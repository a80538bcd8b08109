// A scanned request against its layer.
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/codec/f8_rows.h"
#include "server/codec/forward_codec.h"

namespace expertd {
namespace {

// Bytes of [rows, columns] elements, none of them negative; nothing when that is beyond 2^63 - 1.
std::optional<std::int64_t> MatrixBytes(std::int64_t rows, std::int64_t columns, DType dtype) {
  std::int64_t elements = 0, bytes = 0;
  if (__builtin_mul_overflow(rows, columns, &elements)) return std::nullopt;
  if (__builtin_mul_overflow(elements, std::int64_t{BitsOf(dtype) / 8}, &bytes)) return std::nullopt;
  return bytes;
}

struct Matrix {
  absl::string_view field;
  WireRange range;
  std::int64_t rows;
  absl::string_view columns_name;
  std::int64_t columns;
  DType dtype;
};

absl::Status CheckSize(const Matrix& m) {
  const std::optional<std::int64_t> bytes = MatrixBytes(m.rows, m.columns, m.dtype);
  if (bytes.has_value() && static_cast<std::uint64_t>(*bytes) == m.range.size) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(m.field, ": ", m.range.size, " bytes do not hold rows=", m.rows, " x ", m.columns_name, "=",
                   m.columns, " x ", DTypeName(m.dtype), " (",
                   bytes.has_value() ? absl::StrCat(*bytes) : std::string("more than 9223372036854775807"), " bytes)"));
}

// Scales come with e4m3 rows and with nothing else.
absl::Status CheckScales(const ForwardHead& head, const LayerSpec& spec) {
  struct {
    absl::string_view field, of;
    std::int64_t value;
    DType dtype;
  } const fields[] = {{"scale_block", "dtype", head.scale_block, head.dtype},
                      {"scales", "dtype", static_cast<std::int64_t>(head.scales.size), head.dtype},
                      {"output_scale_block", "output_dtype", head.output_scale_block, head.output_dtype}};
  for (const auto& field : fields) {
    if (field.value == 0 || field.dtype == DType::kF8E4M3) continue;
    return absl::InvalidArgumentError(absl::StrCat(field.field, ": ", field.value, " is given, but ", field.of, " is ",
                                                   DTypeName(field.dtype), ", which has no scales"));
  }
  if (head.dtype != DType::kF8E4M3) return absl::OkStatus();
  const std::int64_t scales = ScalesPerRow(spec.hidden_size, head.scale_block);
  return CheckSize({"scales", head.scales, head.rows, "scales", scales, DType::kF32});
}

// e4m3 rows would have to be decoded somewhere, which is what a region is there to avoid.
absl::Status CheckRegionDTypes(const ForwardHead& head) {
  for (const auto& [field, dtype] : {std::pair("dtype", head.dtype), std::pair("output_dtype", head.output_dtype)}) {
    if (dtype != DType::kF8E4M3) continue;
    return absl::InvalidArgumentError(absl::StrCat(field, ": rows in a region are bf16 or f32, not e4m3"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckAgainstLayer(const ForwardHead& head, const LayerSpec& spec, const ForwardLimits& limits) {
  if (head.rows > limits.max_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows: ", head.rows, " is more than the ", limits.max_rows, " that one request may have"));
  }
  if (head.pre_routed) {
    if (head.k < 1 || head.k > limits.max_k) {
      return absl::InvalidArgumentError(absl::StrCat("routing.k: ", head.k, " is not in 1..", limits.max_k));
    }
    if (absl::Status s = CheckSize({"topk_ids", head.topk_ids, head.rows, "k", head.k, DType::kI32}); !s.ok()) return s;
    if (absl::Status s = CheckSize({"topk_weights", head.topk_weights, head.rows, "k", head.k, DType::kF32}); !s.ok()) {
      return s;
    }
  }
  if (absl::Status s = CheckScales(head, spec); !s.ok()) return s;
  if (head.region.has_value()) return CheckRegionDTypes(head);
  return CheckSize({"hidden_states", head.hidden_states, head.rows, "hidden", spec.hidden_size, head.dtype});
}

}  // namespace expertd
