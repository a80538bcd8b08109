#include "server/trace/trace_context.h"

#include <algorithm>

namespace expertd {
namespace {

// 00-<32 hex>-<16 hex>-<2 hex>
constexpr std::size_t kVersion = 0, kTrace = 3, kParent = 36, kFlags = 53, kLength = 55;
constexpr unsigned kSampled = 1;

bool IsLowerHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsZero(absl::string_view text) { return text.find_first_not_of('0') == absl::string_view::npos; }

unsigned HexDigit(char c) { return static_cast<unsigned>(c <= '9' ? c - '0' : c - 'a' + 10); }

}  // namespace

std::optional<TraceContext> ParseTraceparent(absl::string_view text) {
  if (text.size() < kLength || text[kTrace - 1] != '-' || text[kParent - 1] != '-' || text[kFlags - 1] != '-') {
    return std::nullopt;
  }
  const absl::string_view version = text.substr(kVersion, 2), trace = text.substr(kTrace, 32),
                          parent = text.substr(kParent, 16), flags = text.substr(kFlags, 2);
  for (const absl::string_view part : {version, trace, parent, flags}) {
    if (!IsLowerHex(part)) return std::nullopt;
  }
  const bool longer = text.size() > kLength;
  if (version == "ff" || IsZero(trace) || IsZero(parent)) return std::nullopt;
  if (longer && (version == "00" || text[kLength] != '-')) return std::nullopt;
  TraceContext context;
  std::copy(trace.begin(), trace.end(), context.trace_id.begin());
  std::copy(parent.begin(), parent.end(), context.parent_id.begin());
  context.sampled = (HexDigit(flags[1]) & kSampled) != 0;
  return context;
}

}  // namespace expertd
