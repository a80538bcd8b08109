#include "kernels/routing_check.h"

#include <array>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace expertd {
namespace {

// Element types whose exponent is all ones exactly when the value is NaN or infinite, as lanes of a 64-bit word: one
// added at the exponent's lowest bit then carries into the lane's sign bit, and never beyond it.
struct ExponentLanes {
  std::uint64_t exponent;
  std::uint64_t lowest_exponent_bit;
  std::uint64_t sign;
};
constexpr ExponentLanes kBF16Lanes = {0x7f807f807f807f80u, 0x0080008000800080u, 0x8000800080008000u};
constexpr ExponentLanes kF32Lanes = {0x7f8000007f800000u, 0x0080000000800000u, 0x8000000080000000u};

// Whether all elements in `size` bytes are finite. No early exit: a loop without branches is what vectorises.
bool AllFinite(const std::byte* data, std::size_t size, const ExponentLanes& lanes) {
  std::uint64_t carries = 0;
  std::uint64_t word = 0;
  std::size_t i = 0;
  for (; i + sizeof(word) <= size; i += sizeof(word)) {
    std::memcpy(&word, data + i, sizeof(word));
    carries |= (word & lanes.exponent) + lanes.lowest_exponent_bit;
  }
  if (i < size) {
    word = 0;  // zeros are finite
    std::memcpy(&word, data + i, size - i);
    carries |= (word & lanes.exponent) + lanes.lowest_exponent_bit;
  }
  return (carries & lanes.sign) == 0;
}

bool AllInRange(const std::int32_t* ids, std::int64_t count, std::int64_t num_experts) {
  bool outside = false;
  for (std::int64_t i = 0; i < count; ++i) {
    // -1 becomes 0 and what is less becomes huge.
    outside |= static_cast<std::uint32_t>(ids[i]) + 1u > static_cast<std::uint32_t>(num_experts);
  }
  return !outside;
}

// Whether some row names an expert twice; ids are in range. `last_row[id + 1]` is the last row, counted from 1, that
// named the expert, so one look per slot is enough and nothing has to be cleared between rows.
bool AnyRepeated(const std::int32_t* ids, std::int64_t rows, std::int64_t k, std::int64_t num_experts) {
  std::array<std::int64_t, kMaxExperts + 1> last_row;
  std::memset(last_row.data(), 0, (num_experts + 1) * sizeof(last_row[0]));
  bool repeated = false;
  for (std::int64_t row = 1; row <= rows; ++row) {
    for (std::int64_t slot = 0; slot < k; ++slot) {
      const std::int32_t id = *ids++;
      repeated |= (id >= 0) & (last_row[id + 1] == row);
      last_row[id + 1] = row;
    }
  }
  return repeated;
}

std::string Element(absl::string_view field, std::int64_t row, std::int64_t slot) {
  return absl::StrCat(field, "[", row, ",", slot, "]");
}

absl::Status CheckSlot(const std::int32_t* row_ids, const float* row_weights, std::int64_t row, std::int64_t slot,
                       const LayerSpec& spec) {
  const std::int32_t id = row_ids[slot];
  if (id < -1 || id >= spec.num_experts) {
    return absl::InvalidArgumentError(absl::StrCat(Element("topk_ids", row, slot), "=", id, " is not an expert of ",
                                                   spec.Name(), " (0..", spec.num_experts - 1, ")"));
  }
  for (std::int64_t earlier = 0; earlier < slot; ++earlier) {
    if (id < 0 || row_ids[earlier] != id) continue;
    return absl::InvalidArgumentError(absl::StrCat(Element("topk_ids", row, slot), "=", id, " repeats ",
                                                   Element("topk_ids", row, earlier),
                                                   ", an expert may stand in a row once"));
  }
  if (!AllFinite(reinterpret_cast<const std::byte*>(row_weights + slot), sizeof(float), kF32Lanes)) {
    return absl::InvalidArgumentError(
        absl::StrCat(Element("topk_weights", row, slot), "=", row_weights[slot], " is not finite"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRouting(const std::int32_t* ids, const float* weights, std::int64_t rows, std::int64_t k,
                          const LayerSpec& spec) {
  if (spec.num_experts > kMaxExperts) {
    return absl::InternalError(absl::StrCat(spec.Name(), ": ", spec.num_experts, " experts, at most ", kMaxExperts));
  }
  const std::int64_t slots = rows * k;
  if (AllInRange(ids, slots, spec.num_experts) && !AnyRepeated(ids, rows, k, spec.num_experts) &&
      AllFinite(reinterpret_cast<const std::byte*>(weights), slots * sizeof(float), kF32Lanes)) {
    return absl::OkStatus();
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t slot = 0; slot < k; ++slot) {
      absl::Status status = CheckSlot(ids + row * k, weights + row * k, row, slot, spec);
      if (!status.ok()) return status;
    }
  }
  return absl::InternalError("routing: refused, but no slot of it");
}

bool HasNonFinite(const void* rows_data, DType dtype, std::int64_t rows, std::int64_t hidden_size, std::int64_t* row) {
  const ExponentLanes& lanes = dtype == DType::kF32 ? kF32Lanes : kBF16Lanes;
  const std::int64_t row_bytes = BytesOf(dtype, hidden_size);
  const auto* data = static_cast<const std::byte*>(rows_data);
  for (std::int64_t r = 0; r < rows; ++r) {
    if (AllFinite(data + r * row_bytes, row_bytes, lanes)) continue;
    *row = r;
    return true;
  }
  return false;
}

}  // namespace expertd
