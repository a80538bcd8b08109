#include "server/codec/utf8.h"

#include <cstdint>

namespace expertd {
namespace {

// Well-formed sequences by their first byte; the second byte's range excludes overlong forms, surrogates and what lies
// above U+10FFFF. Further bytes are 80..BF. (The Unicode Standard, table 3-7.)
struct Sequence {
  std::uint8_t first_low, first_high;
  std::uint8_t second_low, second_high;
  std::size_t size;
};

constexpr Sequence kSequences[] = {
    {0x00, 0x7f, 0x00, 0x00, 1}, {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
    {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
    {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
};

bool Within(char byte, std::uint8_t low, std::uint8_t high) {
  const auto value = static_cast<std::uint8_t>(byte);
  return low <= value && value <= high;
}

// Bytes of the character that `text` begins with; 0 when it begins with none.
std::size_t CharacterSize(absl::string_view text) {
  for (const Sequence& sequence : kSequences) {
    if (!Within(text[0], sequence.first_low, sequence.first_high)) continue;
    if (text.size() < sequence.size) return 0;
    for (std::size_t i = 1; i < sequence.size; ++i) {
      const bool second = i == 1;
      if (!Within(text[i], second ? sequence.second_low : 0x80, second ? sequence.second_high : 0xbf)) return 0;
    }
    return sequence.size;
  }
  return 0;
}

}  // namespace

std::size_t ValidUtf8Prefix(absl::string_view text) {
  std::size_t valid = 0;
  while (valid < text.size()) {
    const std::size_t size = CharacterSize(text.substr(valid));
    if (size == 0) break;
    valid += size;
  }
  return valid;
}

std::string ToValidUtf8(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const std::size_t valid = ValidUtf8Prefix(text);
    out.append(text.data(), valid);
    text.remove_prefix(valid);
    if (text.empty()) break;
    out.push_back('?');
    text.remove_prefix(1);
  }
  return out;
}

}  // namespace expertd
