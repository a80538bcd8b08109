#include "server/log.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace expertd {
namespace {

std::atomic<bool> json_lines = false;

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

// Between quotes, escaped as JSON demands.
void AppendQuoted(absl::string_view text, std::string* out) {
  out->push_back('"');
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(out, "\\u%04x", static_cast<unsigned>(c));
    } else {
      out->push_back(c);
    }
  }
  out->push_back('"');
}

bool IsPlain(absl::string_view text) {
  if (text.empty()) return false;
  for (const char c : text) {
    if (c <= ' ' || c == '"' || c == '\\' || c == '=') return false;
  }
  return true;
}

void AppendValue(const LogField& field, bool json, std::string* out) {
  if (const auto* text = std::get_if<absl::string_view>(&field.value)) {
    if (json || !IsPlain(*text)) {
      AppendQuoted(*text, out);
    } else {
      absl::StrAppend(out, *text);
    }
  } else if (const auto* integer = std::get_if<std::int64_t>(&field.value)) {
    absl::StrAppend(out, *integer);
  } else {
    absl::StrAppend(out, std::get<double>(field.value));
  }
}

// Whatever their severity: most are about what callers did, who can cause any number of them.
void LogGrpcMessage(gpr_log_func_args* args) {
  Log(LogLevel::kDebug, "grpc", {{"severity", gpr_log_severity_string(args->severity)}, {"message", args->message}});
}

}  // namespace

void InitLog(absl::string_view level, absl::string_view format) {
  const bool json = format == "json";
  json_lines = json;
  auto logger = std::make_shared<spdlog::logger>("expertd", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_level(spdlog::level::from_str(std::string(level)));
  logger->set_pattern(json ? R"({"time":"%Y-%m-%dT%H:%M:%S.%f%z","level":"%l",%v})" : "%Y-%m-%dT%H:%M:%S.%f %l %v");
  logger->flush_on(spdlog::level::warn);
  spdlog::set_default_logger(std::move(logger));
  gpr_set_log_function(&LogGrpcMessage);
  // It writes a line of its own for every message that is not UTF-8; who sent it is told, and counted.
  google::protobuf::SetLogHandler(nullptr);
}

bool LogEnabled(LogLevel level) { return spdlog::default_logger_raw()->should_log(ToSpdlog(level)); }

void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields) {
  if (!LogEnabled(level)) return;
  const bool json = json_lines;
  std::string line;
  if (json) {
    line = R"("event":)";
    AppendQuoted(event, &line);
  } else {
    absl::StrAppend(&line, event);
  }
  for (const LogField& field : fields) {
    if (json) {
      line.push_back(',');
      AppendQuoted(field.key, &line);
      line.push_back(':');
    } else {
      absl::StrAppend(&line, " ", field.key, "=");
    }
    AppendValue(field, json, &line);
  }
  spdlog::default_logger_raw()->log(ToSpdlog(level), "{}", line);
}

void FlushLog() { spdlog::default_logger_raw()->flush(); }

}  // namespace expertd
