#include "server/ring_requests.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/error_answer.h"

namespace expertd {
namespace {

// What an error's message may not use of a slot.
constexpr std::size_t kErrorFields = 64;

}  // namespace

void RingRequests::Handle(absl::string_view message) {
  const Clock::time_point time = Clock::now();
  const Slices slices(&message, 1);
  std::uint64_t id = 0;
  absl::StatusOr<StreamHead> head = ScanStreamRequest(slices, &id);
  if (head.ok() && head->cancel_request_id) {
    CancelRequest(*head->cancel_request_id);
    return ring_->NoAnswer();
  }
  Submit(id, head.ok() ? std::move(head->forward) : absl::StatusOr<ForwardHead>(head.status()), slices, time);
}

void RingRequests::Submit(std::uint64_t id, absl::StatusOr<ForwardHead> head, Slices message, Clock::time_point time) {
  bool unique;
  {
    MutexLock lock(mutex_);
    unique = in_flight_.try_emplace(id).second;
  }
  if (!unique) {
    const absl::Status status = absl::InvalidArgumentError(absl::StrCat("request_id: ", id, " is in flight here"));
    path_.Refused(Rpc::kRing, status);
    return AnswerError(id, status);
  }
  const Arrival arrival = {.rpc = Rpc::kRing, .tenant = caller_.tenant, .time = time};
  const std::optional<Scheduler::JobId> job =
      path_.Submit(std::move(head), message, arrival,
                   [self = shared_from_this(), id](const absl::Status& status, const grpc::ByteBuffer& answer) {
                     self->Answered(id, status, answer);
                   });
  if (!job) return;
  bool cancel;
  {
    MutexLock lock(mutex_);
    if (const auto found = in_flight_.find(id); found != in_flight_.end()) found->second = job;
    cancel = gone_;
  }
  if (cancel) path_.Cancel(*job);
}

void RingRequests::CancelRequest(std::uint64_t id) {
  std::optional<Scheduler::JobId> job;
  {
    MutexLock lock(mutex_);
    if (const auto found = in_flight_.find(id); found != in_flight_.end()) job = found->second;
  }
  if (job) path_.Cancel(*job);
}

void RingRequests::CancelAll() {
  std::vector<Scheduler::JobId> jobs;
  {
    MutexLock lock(mutex_);
    gone_ = true;
    for (const auto& [id, job] : in_flight_) {
      if (job) jobs.push_back(*job);
    }
  }
  for (const Scheduler::JobId job : jobs) path_.Cancel(job);
}

void RingRequests::Answered(std::uint64_t id, const absl::Status& status, const grpc::ByteBuffer& message) {
  {
    MutexLock lock(mutex_);
    in_flight_.erase(id);
  }
  if (!status.ok()) return AnswerError(id, status);
  if (message.Length() > ring_->message_bytes()) {
    return AnswerError(id, absl::InvalidArgumentError(absl::StrCat("slot_bytes: the answer of ", message.Length(),
                                                                   " bytes does not fit a slot, which holds ",
                                                                   ring_->message_bytes())));
  }
  const MessageSlices slices(message);
  std::string answer;
  answer.reserve(message.Length());
  for (const absl::string_view slice : Slices(slices)) answer.append(slice.data(), slice.size());
  ring_->Answer(answer);
}

void RingRequests::AnswerError(std::uint64_t id, const absl::Status& status) {
  std::string answer = EncodeError(id, status);
  if (answer.size() > ring_->message_bytes()) {
    absl::Status shorter(status.code(), status.message().substr(0, ring_->message_bytes() - kErrorFields));
    status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) { shorter.SetPayload(url, payload); });
    answer = EncodeError(id, shorter);
  }
  ring_->Answer(answer);
}

}  // namespace expertd
