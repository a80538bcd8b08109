// Writes the Protobuf wire format, as Protobuf's own writer would: fields in the order of the calls, defaults left out.
#pragma once

#include <cstdint>
#include <string>

#include "absl/base/casts.h"
#include "absl/strings/string_view.h"
#include "server/codec/wire_reader.h"

namespace expertd {

class WireWriter {
 public:
  // Appends to `*out`; with null only counts.
  explicit WireWriter(std::string* out) : out_(out) {}

  // Bytes of all fields, those included that FollowedBy announced.
  std::uint64_t size() const { return size_; }

  void Number(std::uint32_t field, std::uint64_t value) {
    if (value == 0) return;
    Tag(field, WireType::kVarint);
    Varint(value);
  }

  void Float(std::uint32_t field, float value);

  void Bytes(std::uint32_t field, absl::string_view value) {
    FollowedBy(field, value.size());
    if (out_ != nullptr) out_->append(value.data(), value.size());
  }

  // The beginning of a bytes field; its `size` bytes are to follow from elsewhere, behind everything written here.
  void FollowedBy(std::uint32_t field, std::uint64_t size) {
    if (size == 0) return;
    Tag(field, WireType::kBytes);
    Varint(size);
    size_ += size;
  }

  // Counts `size` bytes that are to follow, tags and all.
  void Later(std::uint64_t size) { size_ += size; }

  // A nested message, written also when it is empty. `body(WireWriter&)` is called twice, first to count.
  template <class Body>
  void Message(std::uint32_t field, const Body& body) {
    WireWriter counter(nullptr);
    body(counter);
    Tag(field, WireType::kBytes);
    Varint(counter.size());
    body(*this);
  }

 private:
  void Tag(std::uint32_t field, WireType type) { Varint(field << 3 | static_cast<std::uint32_t>(type)); }
  void Varint(std::uint64_t value);
  void Append(const void* data, std::size_t size) {
    size_ += size;
    if (out_ != nullptr) out_->append(static_cast<const char*>(data), size);
  }

  std::string* out_;
  std::uint64_t size_ = 0;
};

}  // namespace expertd
