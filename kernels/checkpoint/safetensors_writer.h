// Writes one safetensors file: the header first, then the tensors' bytes in any order and from any thread, so that a
// file larger than memory can be made.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/tensor.h"

namespace expertd {

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;

  std::int64_t bytes() const;
};

class SafetensorsWriter {
 public:
  // Writes the header to `path`.part; the bytes of wider types come first in the file, so that all are aligned.
  // InvalidArgument: a name twice or reserved, a negative size; Unavailable: what the system said.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      const std::string& path, std::vector<TensorInfo> tensors,
      const std::map<std::string, std::string>& metadata = {});
  ~SafetensorsWriter();  // without Finish(), removes what was written
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // As given to Create, in that order: the index into it names a tensor.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }

  // Puts `bytes` at `offset` of a tensor. Every byte must be written once. Thread-safe. OutOfRange beyond the tensor;
  // Unavailable: what the system said (a full disk, for one).
  absl::Status Write(std::size_t tensor, std::int64_t offset, absl::Span<const std::byte> bytes);

  // Gives the file its name. FailedPrecondition when bytes are missing.
  absl::Status Finish();

 private:
  SafetensorsWriter() = default;
  std::string path_;
  int fd_ = -1;
  std::vector<TensorInfo> tensors_;
  std::vector<std::int64_t> begins_;  // of each tensor, from the start of the file
  std::int64_t total_ = 0;            // bytes of all tensors
  std::atomic<std::int64_t> written_{0};
};

}  // namespace expertd
