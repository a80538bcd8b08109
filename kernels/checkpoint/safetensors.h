// The safetensors file format: u64 little-endian header length, JSON header, then the tensors' bytes.
// A strict reader over a memory map, and a writer. Depends on nothing of the engine, so clients use it too.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/tensor.h"

namespace expertd {

struct TensorEntry {
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;  // into the file's map
  std::int64_t bytes = 0;
};

// One file, mapped read-only. Immutable and thread-safe; views live as long as the object.
class SafetensorsFile {
 public:
  // Checks the whole header before returning: length <= 100 MB and within the file, valid JSON without duplicate names,
  // known dtypes, dtype x shape = length with checked arithmetic, offsets contiguous, non-overlapping and covering the
  // buffer. InvalidArgument "<file name>: tensor <name>: <reason>"; NotFound when the file is missing.
  static absl::StatusOr<std::shared_ptr<const SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::map<std::string, TensorEntry>& tensors() const { return tensors_; }
  // Null when there is none of that name.
  const TensorEntry* Find(const std::string& name) const;

  // Tells the system that these bytes of the map are not needed soon (whole pages inside the range only).
  void DropPages(const std::byte* data, std::int64_t bytes) const;

 private:
  SafetensorsFile() = default;
  std::string path_;
  const std::byte* map_ = nullptr;
  std::size_t map_size_ = 0;
  std::map<std::string, TensorEntry> tensors_;
};

}  // namespace expertd
