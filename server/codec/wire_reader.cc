#include "server/codec/wire_reader.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace expertd {

absl::string_view WireTypeName(WireType type) {
  constexpr absl::string_view kNames[] = {"varint", "64-bit", "length-delimited", "group", "end of group", "32-bit"};
  return kNames[static_cast<int>(type)];
}

WireReader::WireReader(Slices slices) : slices_(slices) {
  for (absl::string_view slice : slices) limit_ += slice.size();
}

std::uint64_t WireReader::Confine(std::uint64_t size) {
  const std::uint64_t outer = limit_;
  limit_ = position_ + size;
  return outer;
}

// Slices are entered only when a byte of them is wanted: there may be none behind the last byte, and some may be empty.
void WireReader::EnterSlice() {
  while (next_ == slice_end_) {
    const absl::string_view slice = slices_[next_slice_++];
    next_ = slice.data();
    slice_end_ = slice.data() + slice.size();
  }
}

bool WireReader::Wants(std::uint64_t size) {
  if (size <= left()) return true;
  return Fail("truncated: ", size, " bytes wanted, ", left(), " left");
}

bool WireReader::ReadVarint(int bits, absl::string_view what, std::uint64_t* value) {
  *value = 0;
  for (int shift = 0; shift < bits; shift += 7) {
    if (!Wants(1)) return false;
    EnterSlice();
    const auto byte = static_cast<std::uint8_t>(*next_++);
    ++position_;
    const std::uint64_t payload = byte & 0x7f;
    if (bits - shift < 7 && (payload >> (bits - shift)) != 0) break;
    *value |= payload << shift;
    if (byte < 0x80) return true;
  }
  return Fail(what, " of more than ", bits, " bits");
}

bool WireReader::ReadTag(WireTag* tag) {
  std::uint64_t value = 0;
  if (!ReadVarint(32, "tag", &value)) return false;
  const std::uint64_t type = value & 7;
  tag->number = static_cast<std::uint32_t>(value >> 3);
  tag->type = static_cast<WireType>(type);
  if (tag->number == 0) return Fail("field number 0");
  if (type > static_cast<std::uint64_t>(WireType::kFixed32)) return Fail("wire type ", type, " of field ", tag->number);
  return true;
}

bool WireReader::ReadSize(std::uint64_t* size) { return ReadVarint(31, "length", size) && Wants(*size); }

bool WireReader::Read(std::byte* out, std::uint64_t size) {
  if (!Wants(size)) return false;
  position_ += size;
  while (size > 0) {
    EnterSlice();
    const auto part = std::min<std::uint64_t>(size, slice_end_ - next_);
    std::memcpy(out, next_, part);
    out += part;
    next_ += part;
    size -= part;
  }
  return true;
}

bool WireReader::Skip(std::uint64_t size) {
  if (!Wants(size)) return false;
  position_ += size;
  while (size > 0) {
    EnterSlice();
    const auto part = std::min<std::uint64_t>(size, slice_end_ - next_);
    next_ += part;
    size -= part;
  }
  return true;
}

bool WireReader::SkipField(WireTag tag) {
  std::uint64_t value = 0;
  switch (tag.type) {
    case WireType::kVarint:
      return ReadNumber(&value);
    case WireType::kFixed64:
      return Skip(8);
    case WireType::kBytes:
      return ReadSize(&value) && Skip(value);
    case WireType::kBeginGroup:
      return SkipGroup(tag.number);
    case WireType::kEndGroup:
      return Fail("end of group ", tag.number, " without a beginning");
    case WireType::kFixed32:
      return Skip(4);
  }
  return Fail("wire type ", static_cast<int>(tag.type));
}

// A loop, so that a hostile message cannot choose how deep our stack gets.
bool WireReader::SkipGroup(std::uint32_t number) {
  std::array<std::uint32_t, kMaxGroupDepth> open;
  int depth = 0;
  open[depth++] = number;
  while (depth > 0) {
    WireTag tag;
    if (!ReadTag(&tag)) return false;
    if (tag.type == WireType::kBeginGroup) {
      if (depth == kMaxGroupDepth) return Fail("groups nested more than ", kMaxGroupDepth, " deep");
      open[depth++] = tag.number;
    } else if (tag.type == WireType::kEndGroup) {
      if (tag.number != open[--depth]) return Fail("end of group ", tag.number, " inside group ", open[depth]);
    } else if (!SkipField(tag)) {
      return false;
    }
  }
  return true;
}

}  // namespace expertd
