// Structured logs on stderr: one line an event, with its fields, as text or JSON.
#pragma once

#include <initializer_list>
#include <string>
#include <variant>

#include "absl/strings/string_view.h"

namespace expertd {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogField {
  absl::string_view key;
  std::variant<absl::string_view, std::int64_t, double> value;
};

// Call once, before threads start. `level` and `format` are the values of --log-level and --log-format. Also takes over
// gRPC's own messages, and silences Protobuf's.
void InitLog(absl::string_view level, absl::string_view format);

// Whether lines of `level` are written; ask before building costly fields.
bool LogEnabled(LogLevel level);

// Thread-safe. Text: `time level event key=value ...`; values with spaces or quotes are quoted.
void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields = {});

void FlushLog();

}  // namespace expertd
