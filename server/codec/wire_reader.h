// The Protobuf wire format over slices: tags, numbers, lengths, and fields to be skipped. A field may begin in one
// slice and end in another. Knows no message types, allocates nothing but the text of an error.
//
// Stricter than Protobuf's own parser, which drops the excess bits: a number has at most 64 bits, a tag at most 32. And
// unknown groups nest at most kMaxGroupDepth deep.
//
// After the Protobuf encoding guide, https://protobuf.dev/programming-guides/encoding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/codec/forward_codec.h"

namespace expertd {

enum class WireType : std::uint8_t {
  kVarint = 0,
  kFixed64 = 1,
  kBytes = 2,
  kBeginGroup = 3,
  kEndGroup = 4,
  kFixed32 = 5,
};

absl::string_view WireTypeName(WireType type);

struct WireTag {
  std::uint32_t number = 0;  // of the field, >= 1
  WireType type = WireType::kVarint;
};

inline constexpr int kMaxGroupDepth = 32;

// A cursor: cheap to copy, so that a copy can read ahead. A member that returns false has failed for good: the bytes
// are no Protobuf message, and status() says why and where. The slices must outlive it.
class WireReader {
 public:
  explicit WireReader(Slices slices);

  std::uint64_t position() const { return position_; }
  bool AtLimit() const { return position_ == limit_; }
  std::uint64_t left() const { return limit_ - position_; }

  // Confines reading to the next `size` bytes, size <= left(). Returns the limit to give to Widen() behind them.
  std::uint64_t Confine(std::uint64_t size);
  void Widen(std::uint64_t limit) { limit_ = limit; }

  bool ReadTag(WireTag* tag);
  bool ReadNumber(std::uint64_t* value) { return ReadVarint(64, "number", value); }
  // The size of a kBytes field, whose bytes follow: *size <= left().
  bool ReadSize(std::uint64_t* size);
  bool Read(std::byte* out, std::uint64_t size);
  bool Skip(std::uint64_t size);
  // Skips a field whose tag was just read, a group with all that it holds.
  bool SkipField(WireTag tag);

  const absl::Status& status() const { return status_; }

 private:
  bool ReadVarint(int bits, absl::string_view what, std::uint64_t* value);
  bool SkipGroup(std::uint32_t number);
  bool Wants(std::uint64_t size);
  void EnterSlice();

  template <class... Parts>
  bool Fail(const Parts&... parts) {
    status_ = absl::InvalidArgumentError(absl::StrCat(parts..., " at byte ", position_));
    return false;
  }

  Slices slices_;
  std::size_t next_slice_ = 0;
  const char* next_ = nullptr;  // [next_, slice_end_): what is left of the current slice
  const char* slice_end_ = nullptr;
  std::uint64_t position_ = 0;
  std::uint64_t limit_ = 0;
  absl::Status status_;
};

}  // namespace expertd
