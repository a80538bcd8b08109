#include "kernels/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/checkpoint/strict_json.h"

namespace expertd {
namespace {

using nlohmann::json;

constexpr std::int64_t kLengthBytes = 8;

struct FileType {
  absl::string_view name;
  DType dtype;
};
constexpr FileType kFileTypes[] = {
    {"BOOL", DType::kBool},      {"U8", DType::kU8},          {"I8", DType::kI8},     {"I16", DType::kI16},
    {"U16", DType::kU16},        {"F16", DType::kF16},        {"BF16", DType::kBF16}, {"I32", DType::kI32},
    {"U32", DType::kU32},        {"F32", DType::kF32},        {"F64", DType::kF64},   {"I64", DType::kI64},
    {"U64", DType::kU64},        {"F8_E4M3", DType::kF8E4M3}, {"F4", DType::kF4E2M1}, {"F8_E8M0", DType::kE8M0},
    {"F8_E5M2", DType::kF8E5M2},
};

std::string FileName(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

absl::Status Invalid(const std::string& reason) { return absl::InvalidArgumentError(reason); }

absl::Status ReadShape(const json& info, std::vector<std::int64_t>* shape) {
  const auto found = info.find("shape");
  if (found == info.end() || !found->is_array()) return Invalid("shape: must be an array");
  for (const json& size : *found) {
    if (!size.is_number_unsigned() || size.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max()) {
      return Invalid(absl::StrCat("shape: ", size.dump(), " is no size"));
    }
    shape->push_back(size.get<std::int64_t>());
  }
  return absl::OkStatus();
}

// The bytes that dtype and shape ask for.
absl::StatusOr<std::int64_t> BytesWanted(DType dtype, const std::vector<std::int64_t>& shape) {
  std::int64_t bits = BitsOf(dtype);
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  for (const std::int64_t size : shape) {
    if (__builtin_mul_overflow(bits, size, &bits)) {
      return Invalid(absl::StrFormat("shape %s x %s overflows", ShapeText(shape), DTypeName(dtype)));
    }
  }
  if (bits % 8 != 0) {
    return Invalid(absl::StrFormat("shape %s x %s is no whole number of bytes", ShapeText(shape), DTypeName(dtype)));
  }
  return bits / 8;
}

struct Placed {
  std::string name;
  TensorEntry entry;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// One tensor's entry of the header; `buffer` is the number of bytes behind the header.
absl::Status ReadEntry(const json& info, std::int64_t buffer, Placed* placed) {
  if (!info.is_object()) return Invalid("must be an object of dtype, shape and data_offsets");
  for (const auto& [key, value] : info.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return Invalid(absl::StrCat("unknown field \"", absl::Utf8SafeCEscape(key), "\""));
    }
  }
  const auto dtype = info.find("dtype");
  if (dtype == info.end() || !dtype->is_string()) return Invalid("dtype: must be a string");
  const auto& dtype_name = dtype->get_ref<const std::string&>();
  const auto type = std::find_if(std::begin(kFileTypes), std::end(kFileTypes),
                                 [&](const FileType& known) { return known.name == dtype_name; });
  if (type == std::end(kFileTypes)) {
    return Invalid(absl::StrCat("dtype: \"", absl::Utf8SafeCEscape(dtype_name), "\" is unknown"));
  }
  placed->entry.dtype = type->dtype;
  if (absl::Status status = ReadShape(info, &placed->entry.shape); !status.ok()) return status;

  const auto offsets = info.find("data_offsets");
  if (offsets == info.end() || !offsets->is_array() || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return Invalid("data_offsets: must be two sizes");
  }
  const auto begin = (*offsets)[0].get<std::uint64_t>();
  const auto end = (*offsets)[1].get<std::uint64_t>();
  if (begin > end || end > static_cast<std::uint64_t>(buffer)) {
    return Invalid(absl::StrFormat("data_offsets [%d, %d] do not lie in the file's %d bytes of data (truncated?)",
                                   begin, end, buffer));
  }
  placed->begin = static_cast<std::int64_t>(begin);
  placed->end = static_cast<std::int64_t>(end);
  placed->entry.bytes = placed->end - placed->begin;
  absl::StatusOr<std::int64_t> wanted = BytesWanted(placed->entry.dtype, placed->entry.shape);
  if (!wanted.ok()) return wanted.status();
  if (*wanted != placed->entry.bytes) {
    return Invalid(absl::StrFormat("shape %s x %s wants %d bytes, data_offsets give %d", ShapeText(placed->entry.shape),
                                   DTypeName(placed->entry.dtype), *wanted, placed->entry.bytes));
  }
  return absl::OkStatus();
}

absl::Status CheckMetadata(const json& metadata) {
  if (!metadata.is_object()) return Invalid("__metadata__: must be an object of strings");
  for (const json& value : metadata) {
    if (!value.is_string()) return Invalid("__metadata__: must be an object of strings");
  }
  return absl::OkStatus();
}

// Contiguous, non-overlapping and covering. `tensors` is sorted by position.
absl::Status CheckCover(const std::vector<Placed>& tensors, std::int64_t buffer) {
  std::int64_t at = 0;
  for (const Placed& tensor : tensors) {
    if (tensor.begin != at) {
      return Invalid(absl::StrFormat("tensor %s: data_offsets begin at %d, %s byte %d where the tensor before it ends",
                                     absl::Utf8SafeCEscape(tensor.name), tensor.begin,
                                     tensor.begin < at ? "overlapping:" : "leaving a gap:", at));
    }
    at = tensor.end;
  }
  if (at != buffer) return Invalid(absl::StrFormat("the tensors cover %d of the file's %d bytes of data", at, buffer));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Placed>> ReadHeader(absl::string_view text, std::int64_t buffer) {
  if (text.empty() || text.front() != '{') return Invalid("header: does not begin with '{'");
  absl::StatusOr<json> header = ParseStrictJson(text);
  if (!header.ok()) return Invalid(absl::StrCat("header: ", header.status().message()));
  std::vector<Placed> tensors;
  for (const auto& [name, info] : header->items()) {
    if (name == "__metadata__") {
      if (absl::Status status = CheckMetadata(info); !status.ok()) return status;
      continue;
    }
    Placed& tensor = tensors.emplace_back();
    tensor.name = name;
    if (absl::Status status = ReadEntry(info, buffer, &tensor); !status.ok()) {
      return Invalid(absl::StrCat("tensor ", absl::Utf8SafeCEscape(name), ": ", status.message()));
    }
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const Placed& a, const Placed& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  if (absl::Status status = CheckCover(tensors, buffer); !status.ok()) return status;
  return tensors;
}

}  // namespace

std::string ShapeText(absl::Span<const std::int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::string_view SafetensorsTypeName(DType dtype) {
  for (const FileType& type : kFileTypes) {
    if (type.dtype == dtype) return type.name;
  }
  return "?";
}

absl::StatusOr<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const std::string name = FileName(path);
  std::shared_ptr<SafetensorsFile> file(new SafetensorsFile);
  file->path_ = path;
  file->fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file->fd_ < 0) {
    const std::string reason = absl::StrCat(name, ": ", std::strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(reason) : absl::InvalidArgumentError(reason);
  }
  struct stat info {};
  if (fstat(file->fd_, &info) != 0 || !S_ISREG(info.st_mode))
    return Invalid(absl::StrCat(name, ": not a regular file"));
  const std::int64_t size = info.st_size;
  if (size < kLengthBytes) {
    return Invalid(absl::StrFormat("%s: %d bytes do not hold a header length (8 bytes)", name, size));
  }
  void* map = mmap(nullptr, static_cast<std::size_t>(size), PROT_READ, MAP_SHARED, file->fd_, 0);
  if (map == MAP_FAILED) return Invalid(absl::StrCat(name, ": cannot be mapped: ", std::strerror(errno)));
  file->map_ = static_cast<const std::byte*>(map);
  file->map_size_ = static_cast<std::size_t>(size);

  std::uint64_t length = 0;
  std::memcpy(&length, file->map_, kLengthBytes);
  if (length > kMaxSafetensorsHeader) {
    return Invalid(
        absl::StrFormat("%s: header of %d bytes, at most %d are allowed", name, length, kMaxSafetensorsHeader));
  }
  if (length > static_cast<std::uint64_t>(size - kLengthBytes)) {
    return Invalid(absl::StrFormat("%s: header of %d bytes, the file has %d (truncated?)", name, length, size));
  }
  const std::int64_t data_begin = kLengthBytes + static_cast<std::int64_t>(length);
  absl::StatusOr<std::vector<Placed>> tensors = ReadHeader(
      {reinterpret_cast<const char*>(file->map_) + kLengthBytes, static_cast<std::size_t>(length)}, size - data_begin);
  if (!tensors.ok()) return Invalid(absl::StrCat(name, ": ", tensors.status().message()));
  for (Placed& tensor : *tensors) {
    tensor.entry.data = file->map_ + data_begin + tensor.begin;
    file->tensors_.emplace(std::move(tensor.name), std::move(tensor.entry));
  }
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (map_ != nullptr) munmap(const_cast<std::byte*>(map_), map_size_);
  if (fd_ >= 0) close(fd_);
}

std::string SafetensorsFile::name() const { return FileName(path_); }

const TensorEntry* SafetensorsFile::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

void SafetensorsFile::DropPages(const std::byte* data, std::int64_t bytes) const {
  const auto page = static_cast<std::int64_t>(sysconf(_SC_PAGESIZE));
  const std::int64_t begin = (data - map_ + page - 1) / page * page;
  const std::int64_t end = (data - map_ + bytes) / page * page;
  if (begin >= end) return;
  // Advice: a failure only leaves the pages to the system's own judgement.
  madvise(const_cast<std::byte*>(map_) + begin, static_cast<std::size_t>(end - begin), MADV_DONTNEED);
  posix_fadvise(fd_, begin, end - begin, POSIX_FADV_DONTNEED);
}

}  // namespace expertd
