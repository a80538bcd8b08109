// Protobuf messages by hand, field by field, so that a test can write what no well-behaved writer would.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace expertd {

inline std::string RawVarint(std::uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
  return out;
}

inline std::string RawTag(std::uint32_t number, int wire_type) {
  return RawVarint(std::uint64_t{number} << 3 | static_cast<std::uint64_t>(wire_type));
}

// One field with its tag; the tag's number and type need not be true.
struct RawField {
  std::uint32_t number = 0;
  std::string bytes;
};

inline RawField RawNumber(std::uint32_t number, std::uint64_t value) {
  return {number, RawTag(number, 0) + RawVarint(value)};
}
inline RawField RawFixed64(std::uint32_t number) { return {number, RawTag(number, 1) + std::string(8, '\x01')}; }
inline RawField RawBytes(std::uint32_t number, absl::string_view value) {
  return {number, RawTag(number, 2) + RawVarint(value.size()) + std::string(value)};
}
inline RawField RawGroup(std::uint32_t number, absl::string_view body) {
  return {number, RawTag(number, 3) + std::string(body) + RawTag(number, 4)};
}
inline RawField RawFixed32(std::uint32_t number) { return {number, RawTag(number, 5) + std::string(4, '\x01')}; }

struct RawMessage {
  std::vector<RawField> fields;

  // Copies with one thing changed. With() puts the field where its namesake stood, or at the end.
  RawMessage With(RawField field) const {
    RawMessage out = *this;
    for (RawField& other : out.fields) {
      if (other.number == field.number) {
        other = std::move(field);
        return out;
      }
    }
    return out.Plus(std::move(field));
  }
  RawMessage Plus(RawField field) const {
    RawMessage out = *this;
    out.fields.push_back(std::move(field));
    return out;
  }
  RawMessage Without(std::uint32_t number) const {
    RawMessage out = *this;
    std::erase_if(out.fields, [number](const RawField& field) { return field.number == number; });
    return out;
  }
  std::string Bytes() const {
    std::string out;
    for (const RawField& field : fields) out += field.bytes;
    return out;
  }
};

}  // namespace expertd
