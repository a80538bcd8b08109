// UTF-8 as Protobuf's string fields demand it: shortest forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace expertd {

// Bytes of the longest valid prefix; text.size() when all of it is valid.
std::size_t ValidUtf8Prefix(absl::string_view text);

// `text` with each byte that is no part of valid UTF-8 replaced by '?'.
std::string ToValidUtf8(absl::string_view text);

}  // namespace expertd
