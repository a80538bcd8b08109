// Messages as data: a table of field rules says which fields a message has, and ScanMessage holds bytes against it.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/codec/forward_codec.h"
#include "server/codec/wire_reader.h"

namespace expertd {

// One occurrence of a field.
struct FieldValue {
  absl::string_view name;
  std::uint64_t number;     // kVarint: the value. kBytes: how many bytes
  const WireReader& bytes;  // kBytes: where they begin; copy it to read them
};

// What a scan fills in. The first refusal is kept and the scan goes on, since a refused request's id may come last and
// a message that is not decodable is another kind of error. Later occurrences overwrite earlier ones, as in Protobuf.
struct Scan {
  StreamHead head;
  std::optional<DType> output_dtype;
  absl::Status refusal;

  template <class... Parts>
  void Refuse(absl::string_view field, const Parts&... parts) {
    if (refusal.ok()) refusal = absl::InvalidArgumentError(absl::StrCat(field, ": ", parts...));
  }
};

struct FieldRule {
  std::uint32_t number;
  WireType type;  // kVarint or kBytes
  absl::string_view name;
  void (*take)(const FieldValue& field, Scan* scan);
  absl::Span<const FieldRule> message = {};  // not empty: the bytes are a message with these fields
  bool required = false;
  // Members of one oneof carry its name; at most one of them may be given, or exactly one when they are `required`.
  absl::string_view oneof = {};
};

// Reads fields up to the reader's limit. At most 64 rules. False when the bytes are not decodable, see
// reader->status(); what is decodable but breaks a rule is in scan->refusal.
bool ScanMessage(absl::Span<const FieldRule> rules, WireReader* reader, Scan* scan);

}  // namespace expertd
