#include "kernels/reference/io_file.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "kernels/checkpoint/safetensors.h"

namespace expertd::reference {
namespace {

absl::Status Wrong(const SafetensorsFile& file, absl::string_view tensor, absl::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat(file.name(), ": tensor ", tensor, ": ", reason));
}

// A matrix of N rows, and of D columns unless `columns` is 0.
absl::Status CheckMatrix(const SafetensorsFile& file, const std::string& name, const TensorEntry& tensor,
                         std::int64_t n, std::int64_t columns) {
  const bool fits = tensor.shape.size() == 2 && tensor.shape[0] == n &&
                    (columns == 0 ? tensor.shape[1] > 0 : tensor.shape[1] == columns);
  if (fits) return absl::OkStatus();
  return Wrong(file, name,
               absl::StrFormat("shape %s is not [%d, %s]", ShapeText(tensor.shape), n,
                               columns == 0 ? "K" : absl::StrCat(columns)));
}

std::vector<double> Values(const TensorEntry& tensor) {
  // A file may place its tensors at any byte.
  const std::vector<std::byte> aligned(tensor.data, tensor.data + tensor.bytes);
  const VectorView view{.data = aligned.data(), .dtype = tensor.dtype, .size = tensor.shape[0] * tensor.shape[1]};
  std::vector<double> values;
  for (std::int64_t i = 0; i < view.size; ++i) values.push_back(view.At(i));
  return values;
}

absl::Status ReadRouting(const SafetensorsFile& file, std::int64_t layer, std::int64_t n, Answer& io) {
  const std::string ids_name = absl::StrCat("topk_ids.", layer), weights_name = absl::StrCat("topk_weights.", layer);
  const TensorEntry* const ids = file.Find(ids_name);
  const TensorEntry* const weights = file.Find(weights_name);
  if (ids == nullptr || weights == nullptr) return absl::OkStatus();
  if (absl::Status status = CheckMatrix(file, ids_name, *ids, n, 0); !status.ok()) return status;
  if (ids->dtype != DType::kI32 && ids->dtype != DType::kI64) return Wrong(file, ids_name, "is neither i32 nor i64");
  if (absl::Status status = CheckMatrix(file, weights_name, *weights, n, ids->shape[1]); !status.ok()) return status;
  if (weights->dtype != DType::kF32) return Wrong(file, weights_name, "is not f32");
  for (const double id : Values(*ids)) io.topk_ids.push_back(static_cast<std::int32_t>(id));
  io.topk_weights = Values(*weights);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<IoFile> ReadIoFile(const std::string& path) {
  const auto opened = SafetensorsFile::Open(path);
  if (!opened.ok()) return opened.status();
  const SafetensorsFile& file = **opened;
  const TensorEntry* const rows = file.Find("hidden_states");
  if (rows == nullptr) return Wrong(file, "hidden_states", "is missing");
  if (rows->shape.size() != 2 || rows->shape[0] < 1 || rows->shape[1] < 1) {
    return Wrong(file, "hidden_states", absl::StrCat("shape ", ShapeText(rows->shape), " is not [N, D]"));
  }
  if (rows->dtype != DType::kBF16 && rows->dtype != DType::kF32) {
    return Wrong(file, "hidden_states", "is neither bf16 nor f32");
  }
  IoFile io;
  io.n = rows->shape[0];
  io.d = rows->shape[1];
  io.dtype = rows->dtype;
  io.rows = Values(*rows);
  for (const auto& [name, tensor] : file.tensors()) {
    absl::string_view index = name;
    std::int64_t layer = 0;
    if (!absl::ConsumePrefix(&index, "output.") || !absl::SimpleAtoi(index, &layer)) continue;
    if (absl::Status status = CheckMatrix(file, name, tensor, io.n, io.d); !status.ok()) return status;
    if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kBF16)
      return Wrong(file, name, "is neither f32 nor bf16");
    Answer& out = io.layers[layer];
    out.output = Values(tensor);
    if (absl::Status status = ReadRouting(file, layer, io.n, out); !status.ok()) return status;
  }
  return io;
}

}  // namespace expertd::reference
