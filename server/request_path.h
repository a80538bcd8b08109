// A request's way through the server, the same for both RPCs: scanned head -> layer -> budget -> row buffers -> batch
// -> answer.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/engine.h"
#include "server/caller.h"
#include "server/codec/forward_codec.h"
#include "server/job.h"
#include "server/lane/region.h"
#include "server/layer_table.h"
#include "server/metrics.h"
#include "server/scheduler/admission.h"
#include "server/scheduler/scheduler.h"
#include "server/trace/span_writer.h"

namespace expertd {

struct RequestLimits {
  std::int64_t max_rows = 8192;
  std::int64_t max_k = kMaxExpertsPerToken;
  std::chrono::microseconds default_timeout{30'000'000};
  bool refuse_non_finite = false;
  bool count_experts = false;  // for the metrics: the router's choice is asked for even if the caller does not
};

// How an answer is written. ForwardResponse unless told otherwise.
struct AnswerForm {
  // The bytes of the answer's message up to its output, of which exactly output_bytes bytes follow.
  std::function<std::string(const ResponseHead& head, std::uint64_t output_bytes)> encode = EncodeResponsePrefix;
  // When set, it takes the output, and the message is what encode gives. Called where the request completes; must not
  // block for long. Its error is the request's.
  std::function<absl::Status(absl::Span<const std::byte> output)> deliver;
};

// When and how a request came, and how it wants to be answered.
struct Arrival {
  Rpc rpc = Rpc::kForward;
  absl::string_view tenant = kDefaultTenant;  // of the caller; must live as long as Submit
  Clock::time_point time;
  Clock::time_point call_deadline = Clock::time_point::max();  // of the RPC; streams: none
  absl::string_view traceparent;  // of the call, for requests without one of their own; must live as long as Submit
  AnswerForm form;
};

// ok: an answer in the asked form, whose last slice is the output where it lies (unless that was delivered, or lies in
// a region); freeing it gives the rows and their budget back. Otherwise the status for the caller and an empty message.
using AnswerFn = std::function<void(absl::Status status, grpc::ByteBuffer message)>;

// Thread-safe. Everything referred to must outlive it (`spans` null: no tracing); the engine must outlive the messages
// too.
class RequestPath {
 public:
  RequestPath(Engine& engine, std::shared_ptr<Admission> admission, Scheduler& scheduler, LayerTable& layers,
              const RegionTable& regions, Metrics& metrics, const RequestLimits& limits, SpanWriter* spans = nullptr)
      : engine_(engine),
        admission_(std::move(admission)),
        scheduler_(scheduler),
        layers_(layers),
        regions_(regions),
        metrics_(metrics),
        limits_(limits),
        spans_(spans) {}

  // Copies what it needs of `slices` before it returns. `answer` is called exactly once: from here, from a scheduler
  // thread or from within Cancel. The id, for Cancel, only of a request that was queued.
  std::optional<Scheduler::JobId> Submit(absl::StatusOr<ForwardHead> head, Slices slices, const Arrival& arrival,
                                         AnswerFn answer);

  // Counts a request that was refused before it came here.
  void Refused(Rpc rpc, const absl::Status& status);

  void Cancel(Scheduler::JobId id) { scheduler_.Cancel(id); }

  Metrics& metrics() const { return metrics_; }

 private:
  absl::StatusOr<LayerPtr> FindLayer(const ForwardHead& head) const;
  // Everything that can refuse a request; a job of zero rows has no buffers and is not for the scheduler.
  absl::StatusOr<std::unique_ptr<Job>> MakeJob(const ForwardHead& head, Slices slices, const Arrival& arrival);
  absl::Status FillBuffers(const ForwardHead& head, Slices slices, Job& job);
  // Rows of a region as the job's buffers.
  absl::Status BorrowRows(const RegionRows& rows, std::int64_t input_bytes, std::int64_t output_bytes, Job& job);

  Engine& engine_;
  const std::shared_ptr<Admission> admission_;
  Scheduler& scheduler_;
  LayerTable& layers_;
  const RegionTable& regions_;
  Metrics& metrics_;
  const RequestLimits limits_;
  SpanWriter* const spans_;
};

// The message's slices as the codec wants them, held while this lives. To be destroyed by the thread that made it.
class MessageSlices {
 public:
  explicit MessageSlices(const grpc::ByteBuffer& message);
  ~MessageSlices();
  MessageSlices(const MessageSlices&) = delete;
  MessageSlices& operator=(const MessageSlices&) = delete;
  operator Slices() const { return lists_.views; }  // NOLINT(google-explicit-constructor)

 private:
  // A large message comes in hundreds of slices: their lists are kept for the thread's next message.
  struct Lists {
    std::vector<grpc::Slice> slices;
    std::vector<absl::string_view> views;
  };
  static inline thread_local Lists spare_;
  Lists lists_;
};

}  // namespace expertd
