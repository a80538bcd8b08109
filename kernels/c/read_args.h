// The structs of expertd_ops.h as those of kernels/ops.h: what more than one file reads.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/c/expertd_ops.h"
#include "kernels/ops.h"

namespace expertd::c {

// Fields whose values need a translation; remembers the first that has none.
class Reader {
 public:
  DType Rows(const char* field, std::int32_t value) {
    return Named(field, value, EXPERTD_F32) == EXPERTD_BF16 ? DType::kBF16 : DType::kF32;
  }
  // C's enumerators have the values of ours (checked below).
  template <typename Enum>
  Enum Of(const char* field, std::int32_t value, Enum last) {
    return static_cast<Enum>(Named(field, value, static_cast<std::int32_t>(last)));
  }
  const absl::Status& status() const { return status_; }

 private:
  std::int32_t Named(const char* field, std::int32_t value, std::int32_t last) {
    if (value >= 0 && value <= last) return value;
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(field, ": ", value, " is not in 0..", last));
    return 0;
  }
  absl::Status status_;
};

// What the activation's fields say, for the ops that have them.
template <typename Args, typename From>
void ReadActivation(const From& from, Reader& reader, Args& args) {
  args.activation = reader.Of("activation", from.activation, Activation::kSwigluOai);
  if (from.limit != 0) args.limit = from.limit;
  if (from.alpha != 0) args.alpha = from.alpha;
}

inline FusedMoeForwardArgs Read(const expertd_fused_moe_forward_args& from, Reader& reader) {
  FusedMoeForwardArgs args = {.n = from.n,
                              .d = from.d,
                              .e = from.e,
                              .k = from.k,
                              .f = from.f,
                              .weight_on_input = from.weight_on_input != 0,
                              .dtype = reader.Rows("dtype", from.dtype),
                              .out_dtype = reader.Rows("out_dtype", from.out_dtype),
                              .rows = from.rows,
                              .ids = from.ids,
                              .weights = from.weights,
                              .gate_up = from.gate_up,
                              .down = from.down,
                              .out = from.out};
  ReadActivation(from, reader, args);
  return args;
}

// Where a call wants to run.
inline absl::Status CheckLaunch(const expertd_launch* launch) {
  if (launch == nullptr) return absl::InvalidArgumentError("launch: is null");
  if (launch->device >= EXPERTD_HOST) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("launch.device: ", launch->device, " is below -1 (the host)"));
}

// For builds without CUDA.
inline absl::Status NoCuda() {
  return absl::UnavailableError("launch.device: this library was built without CUDA and has only the host (-1)");
}

}  // namespace expertd::c
