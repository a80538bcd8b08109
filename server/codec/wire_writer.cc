#include "server/codec/wire_writer.h"

#include <bit>

namespace expertd {

static_assert(std::endian::native == std::endian::little, "the wire is little-endian, and so are tensors on it");

void WireWriter::Float(std::uint32_t field, float value) {
  if (std::bit_cast<std::uint32_t>(value) == 0) return;
  Tag(field, WireType::kFixed32);
  Append(&value, sizeof(value));
}

void WireWriter::Varint(std::uint64_t value) {
  char bytes[10];
  std::size_t size = 0;
  for (; value >= 0x80; value >>= 7) bytes[size++] = static_cast<char>(value | 0x80);
  bytes[size++] = static_cast<char>(value);
  Append(bytes, size);
}

}  // namespace expertd
