// Spans of sampled requests, written to a file as OTLP in JSON: one ExportTraceServiceRequest a line, as the
// OpenTelemetry collector's otlpjsonfile receiver reads it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"
#include "kernels/engine.h"
#include "server/trace/trace_context.h"

namespace expertd {

// One request that a caller wants to see.
struct RequestSpan {
  TraceContext context;
  std::chrono::system_clock::time_point start;
  const char* rpc = "";  // of the API; a literal
  std::string model;
  std::int64_t layer = 0;
  std::uint64_t request_id = 0;
  std::int64_t rows = 0;
  std::string tenant;
  int code = 0;         // google.rpc.Code
  std::string message;  // of an error
  // Seconds, and what shared its batch; zero for a request that did not run.
  double decode = 0, queue = 0, total = 0;
  StageTimes stages;
  std::int64_t batch_rows = 0;
  std::int64_t batch_requests = 0;
};

// Thread-safe.
class SpanWriter {
 public:
  // Spans that wait to be written; more are dropped and counted.
  static constexpr std::size_t kMaxWaiting = 4096;

  // InvalidArgument: the file cannot be appended to.
  static absl::StatusOr<std::unique_ptr<SpanWriter>> Open(const std::string& path, const std::string& version);
  // Writes what waits.
  ~SpanWriter();

  // Does not block on the file. Only for spans whose context is sampled.
  void Record(RequestSpan span);

  // So far: spans that did not fit in the queue or could not be written.
  std::int64_t dropped() const { return dropped_; }

 private:
  SpanWriter(std::string path, std::string version);
  void Run();
  void Write(const std::vector<RequestSpan>& spans);

  const std::string path_;
  const std::string version_;
  std::atomic<std::int64_t> dropped_ = 0;

  Mutex mutex_;
  CondVar changed_;
  std::vector<RequestSpan> waiting_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// The line for these spans, without its end: a server span for each request and below it one for each stage that took
// time, in their order. `version` is the service's.
std::string EncodeSpans(const std::vector<RequestSpan>& spans, const std::string& version);

}  // namespace expertd
