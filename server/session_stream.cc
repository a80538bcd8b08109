#include "server/session_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/grpc_status.h"
#include "server/status.h"

namespace expertd {
namespace {

class RefusedSession : public SessionStream::Reactor {
 public:
  explicit RefusedSession(grpc::Status status) { Finish(std::move(status)); }
  void OnDone() override { delete this; }
};

void FillError(const absl::Status& status, v1::Error* error) {
  error->set_code(static_cast<int>(status.code()));
  error->set_message(std::string(status.message()));
}

}  // namespace

SessionStream::Reactor* SessionStream::Open(Setup setup) {
  RequestPath& path = setup.path;
  CallRegistry& calls = setup.calls;
  grpc::CallbackServerContext* context = setup.context;
  auto stream = std::make_shared<SessionStream>(std::move(setup));
  if (!calls.Add(stream)) return Refuse(path, context, DrainingError());
  stream->Read();
  return stream.get();
}

SessionStream::Reactor* SessionStream::Refuse(RequestPath& path, grpc::CallbackServerContext* context,
                                              const absl::Status& refusal) {
  path.Refused(Rpc::kSession, refusal);
  return new RefusedSession(ToGrpcStatus(refusal, context));
}

SessionStream::SessionStream(Setup setup)
    : Call(setup.context),
      lane_(setup.lane),
      path_(setup.path),
      calls_(setup.calls),
      caller_(std::move(setup.caller)),
      session_(std::make_unique<LaneSession>(lane_)) {}

void SessionStream::Drain() { End(DrainingError(), /*gone=*/false); }

void SessionStream::Read() {
  {
    MutexLock lock(mutex_);
    if (end_) return;
    ++acting_;
  }
  StartRead(&request_);
  {
    MutexLock lock(mutex_);
    --acting_;
  }
  FinishIfDone();
}

void SessionStream::OnReadDone(bool ok) {
  if (!ok) return End(absl::OkStatus(), /*gone=*/true);  // the peer has half-closed: the session is over
  {
    MutexLock lock(mutex_);
    if (end_) return;
    ++acting_;
  }
  Handle(request_);
  WriteStarts();
  {
    MutexLock lock(mutex_);
    writing_ = true;
  }
  StartWrite(&response_);
  {
    MutexLock lock(mutex_);
    --acting_;
  }
  FinishIfDone();
}

void SessionStream::OnWriteDone(bool ok) {
  WriteEnds();
  {
    MutexLock lock(mutex_);
    writing_ = false;
  }
  if (!ok) return OnCancel();
  Read();
  FinishIfDone();
}

void SessionStream::OnCancel() { End(absl::CancelledError("cancelled by the caller"), /*gone=*/true); }

void SessionStream::OnDone() {
  ForgetContext();
  std::unique_ptr<LaneSession> last;
  absl::StatusCode code;
  {
    MutexLock lock(mutex_);
    last = std::move(session_);
    code = end_->code();
  }
  last.reset();
  path_.metrics().RequestDone(Rpc::kSession, code, std::chrono::duration<double>(Clock::now() - opened_).count());
  calls_.Remove(this);
}

void SessionStream::Handle(const v1::SessionRequest& request) {
  response_.Clear();
  absl::Status status = request.has_create_region()
                            ? CreateRegion(request.create_region(), response_.mutable_region_created())
                            : absl::InvalidArgumentError("kind: missing");
  if (!status.ok()) FillError(status, response_.mutable_error());
}

absl::Status SessionStream::CreateRegion(const v1::CreateRegion& wish, v1::RegionCreated* created) {
  const bool on_device = wish.memory() == v1::CreateRegion::MEMORY_DEVICE;
  if (!on_device && wish.memory() != v1::CreateRegion::MEMORY_HOST) {
    return absl::InvalidArgumentError(absl::StrCat("create_region.memory: ", static_cast<int>(wish.memory()),
                                                   " is no Memory, give MEMORY_HOST or MEMORY_DEVICE"));
  }
  std::shared_ptr<ServerRing> ring;
  {
    // Nobody else wants the lock for long, and the session must not end while it makes a region.
    MutexLock lock(mutex_);
    if (session_ == nullptr) return absl::CancelledError("the session has ended");
    absl::StatusOr<NewRegion> made = session_->CreateRegion({.bytes = wish.bytes(),
                                                             .on_device = on_device,
                                                             .ring_slots = wish.ring_slots(),
                                                             .slot_bytes = wish.slot_bytes()});
    if (!made.ok()) return made.status();
    created->set_handle(made->region->handle());
    created->set_bytes(made->region->size());
    created->set_rows_offset(made->region->rows_offset());
    created->set_socket(made->socket);
    created->set_token(made->token);
    if (on_device) created->set_ipc_handle(made->region->ipc_handle());
    created->set_device_uuid(made->device_uuid);
    ring = std::move(made->ring);
    if (ring != nullptr && !end_) {
      Ring entry = {ring, std::make_shared<RingRequests>(path_, caller_, ring)};
      rings_.push_back(entry);
      session_->StartRing(
          ring, {.on_message = [requests = entry.requests](absl::string_view message) { requests->Handle(message); },
                 .on_broken =
                     [self = weak_from_this()](const absl::Status& reason) {
                       if (const auto alive = self.lock()) alive->End(reason, /*gone=*/true);
                     }});
    }
  }
  return absl::OkStatus();
}

void SessionStream::End(absl::Status status, bool gone) {
  std::unique_ptr<LaneSession> last;  // destroyed outside the lock
  std::vector<Ring> rings;
  {
    MutexLock lock(mutex_);
    if (gone) last = std::move(session_);
    if (!end_) {
      end_ = std::move(status);
      busy_rings_ = rings_.size();
      rings = rings_;
      if (session_ != nullptr) session_->StopRings();
    } else if (gone) {
      rings = rings_;
    }
    ++acting_;
  }
  last.reset();
  for (const Ring& ring : rings) {
    if (gone) ring.requests->CancelAll();
    ring.ring->Close([self = shared_from_this()] { self->RingIdle(); });
  }
  {
    MutexLock lock(mutex_);
    --acting_;
  }
  FinishIfDone();
}

void SessionStream::RingIdle() {
  {
    MutexLock lock(mutex_);
    --busy_rings_;
  }
  FinishIfDone();
}

void SessionStream::FinishIfDone() {
  grpc::Status status;
  {
    MutexLock lock(mutex_);
    if (!end_ || busy_rings_ > 0 || acting_ > 0 || writing_ || finished_) return;
    finished_ = true;
    status = ToGrpcStatus(*end_, nullptr);
  }
  Finish(std::move(status));
}

}  // namespace expertd
