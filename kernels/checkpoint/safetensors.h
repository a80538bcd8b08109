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
#include "absl/types/span.h"
#include "kernels/tensor.h"

namespace expertd {

// The format's own limit.
inline constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;

// "BF16", "F8_E4M3", ...: the file's spelling.
absl::string_view SafetensorsTypeName(DType dtype);
// "[48, 64]".
std::string ShapeText(absl::Span<const std::int64_t> shape);

struct TensorEntry {
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;  // into the file's map; files may place it at any byte, so align before use
  std::int64_t bytes = 0;
};

// One file, mapped read-only. Immutable and thread-safe; views live as long as the object. The file must not shrink
// while it is open (reading past its end would raise SIGBUS).
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
  std::string name() const;  // path() without its folder
  const std::map<std::string, TensorEntry>& tensors() const { return tensors_; }
  // Null when there is none of that name.
  const TensorEntry* Find(const std::string& name) const;

  // Tells the system that these bytes of the map are not needed soon (whole pages inside the range only). They are
  // read from the file again when touched.
  void DropPages(const std::byte* data, std::int64_t bytes) const;

 private:
  SafetensorsFile() = default;
  std::string path_;
  int fd_ = -1;
  const std::byte* map_ = nullptr;
  std::size_t map_size_ = 0;
  std::map<std::string, TensorEntry> tensors_;
};

}  // namespace expertd
