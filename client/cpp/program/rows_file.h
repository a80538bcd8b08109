// Rows to send, as a safetensors file holds them, and the file that answers are written to.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/cpp/messages.h"
#include "kernels/checkpoint/safetensors.h"
#include "kernels/checkpoint/safetensors_writer.h"

namespace expertd::client {

// hidden_states [N, D] bf16 or f32, and either both or none of topk_ids [N, K] i32 or i64 and topk_weights [N, K] f32.
// Other tensors are passed over.
class RowsFile {
 public:
  // InvalidArgument naming file, tensor and reason; NotFound.
  static absl::StatusOr<RowsFile> Open(const std::string& path);

  std::int64_t rows() const { return rows_; }
  std::int64_t hidden_size() const { return hidden_size_; }
  v1::DType dtype() const { return dtype_; }
  std::int64_t k() const { return k_; }  // 0: no routing

  // Rows [first, first + count): rows, dtype, routing and hidden_states are filled in. The rows are not copied; the
  // request keeps the file mapped.
  Request Rows(std::int64_t first, std::int64_t count) const;

 private:
  absl::Status ReadRouting();

  std::shared_ptr<const SafetensorsFile> file_;
  const TensorEntry* hidden_states_ = nullptr;
  std::int64_t rows_ = 0, hidden_size_ = 0, k_ = 0;
  v1::DType dtype_ = v1::DTYPE_UNSPECIFIED;
  std::string topk_ids_, topk_weights_;  // i32 and f32 [N, K]
};

// Collects the answers of consecutive row ranges in one file: output [N, D] and, when the answers carry routing,
// topk_ids i32 and topk_weights f32 [N, K].
class AnswersFile {
 public:
  explicit AnswersFile(std::string path) : path_(std::move(path)) {}

  void Add(const Answer& answer);
  // InvalidArgument when the answers do not fit together or the file cannot be written.
  absl::Status Write(std::int64_t rows, std::int64_t hidden_size) const;

 private:
  const std::string path_;
  v1::DType dtype_ = v1::DTYPE_UNSPECIFIED;
  std::int64_t k_ = 0;
  std::string output_, topk_ids_, topk_weights_;
};

}  // namespace expertd::client
