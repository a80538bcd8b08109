#include "kernels/checkpoint/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/checkpoint/safetensors.h"
#include "nlohmann/json.hpp"

namespace expertd {
namespace {

absl::Status SystemError(const std::string& what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

absl::Status WriteAll(int fd, std::int64_t at, const std::byte* data, std::size_t size) {
  while (size > 0) {
    const ssize_t done = pwrite(fd, data, size, at);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return SystemError("write");
    data += done;
    at += done;
    size -= static_cast<std::size_t>(done);
  }
  return absl::OkStatus();
}

std::string PartName(const std::string& path) { return path + ".part"; }

absl::Status CheckInfo(const TensorInfo& tensor) {
  if (tensor.name == "__metadata__") return absl::InvalidArgumentError("tensor name __metadata__ is reserved");
  for (const std::int64_t size : tensor.shape) {
    if (size < 0) return absl::InvalidArgumentError(absl::StrFormat("tensor %s: negative size %d", tensor.name, size));
  }
  return absl::OkStatus();
}

}  // namespace

std::int64_t TensorInfo::bytes() const {
  return BytesOf(dtype, std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>()));
}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, std::vector<TensorInfo> tensors, const std::map<std::string, std::string>& metadata) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return BitsOf(tensors[a].dtype) > BitsOf(tensors[b].dtype); });

  std::unique_ptr<SafetensorsWriter> writer(new SafetensorsWriter);
  writer->begins_.resize(tensors.size());
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::set<std::string> names;  // ordered_json looks keys up one by one
  for (const std::size_t index : order) {
    const TensorInfo& tensor = tensors[index];
    if (absl::Status status = CheckInfo(tensor); !status.ok()) return status;
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", tensor.name, " is given twice"));
    }
    writer->begins_[index] = writer->total_;
    writer->total_ += tensor.bytes();
    nlohmann::ordered_json info;
    info["dtype"] = std::string(SafetensorsTypeName(tensor.dtype));
    info["shape"] = tensor.shape;
    info["data_offsets"] = {writer->begins_[index], writer->total_};
    header.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(tensor.name, std::move(info));
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > kMaxSafetensorsHeader) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d tensors need a header of %d bytes, at most %d are allowed", path, tensors.size(),
                        text.size(), kMaxSafetensorsHeader));
  }
  const std::uint64_t length = text.size();
  text.insert(0, reinterpret_cast<const char*>(&length), sizeof length);
  for (std::int64_t& begin : writer->begins_) begin += static_cast<std::int64_t>(text.size());
  writer->path_ = path;
  writer->tensors_ = std::move(tensors);
  writer->fd_ = open(PartName(path).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (writer->fd_ < 0) return SystemError(PartName(path));
  if (absl::Status status = WriteAll(writer->fd_, 0, reinterpret_cast<const std::byte*>(text.data()), text.size());
      !status.ok()) {
    return status;
  }
  return writer;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ < 0) return;
  close(fd_);
  std::remove(PartName(path_).c_str());
}

absl::Status SafetensorsWriter::Write(std::size_t tensor, std::int64_t offset, absl::Span<const std::byte> bytes) {
  const auto size = static_cast<std::int64_t>(bytes.size());
  if (tensor >= tensors_.size() || offset < 0 || size > tensors_[tensor].bytes() - offset) {
    return absl::OutOfRangeError(
        absl::StrFormat("tensor %d: bytes [%d, %d) lie outside it", tensor, offset, offset + size));
  }
  if (absl::Status status = WriteAll(fd_, begins_[tensor] + offset, bytes.data(), bytes.size()); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(path_, ": ", status.message()));
  }
  written_ += size;
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  if (written_ != total_) {
    return absl::FailedPreconditionError(absl::StrFormat("%s: %d of %d bytes were written", path_, written_, total_));
  }
  if (close(std::exchange(fd_, -1)) != 0) return SystemError(path_);
  if (std::rename(PartName(path_).c_str(), path_.c_str()) != 0) return SystemError(path_);
  return absl::OkStatus();
}

}  // namespace expertd
