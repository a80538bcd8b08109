#include "server/call_registry.h"

#include <grpcpp/impl/codegen/server_context.h>

#include <utility>

namespace expertd {

absl::Status DrainingError() { return absl::UnavailableError("draining; unanswered ids were not run"); }

absl::Status RotationError() {
  return absl::UnavailableError("the stream has lasted long enough, open another; unanswered ids were not run");
}

double Call::WriteEnds() {
  const Clock::rep since = writing_since_.exchange(0);
  if (since == 0) return 0;
  return std::chrono::duration<double>(Clock::now().time_since_epoch() - Clock::duration(since)).count();
}

bool Call::IsWritingSince(Clock::time_point limit) const {
  const Clock::rep since = writing_since_;
  return since != 0 && Clock::duration(since) <= limit.time_since_epoch();
}

std::string Call::Peer() {
  MutexLock lock(mutex_);
  return context_ == nullptr ? std::string() : context_->peer();
}

bool Call::Cancel() {
  MutexLock lock(mutex_);
  if (context_ == nullptr) return false;
  context_->TryCancel();
  context_ = nullptr;
  return true;
}

void Call::ForgetContext() {
  MutexLock lock(mutex_);
  context_ = nullptr;
}

bool CallRegistry::Add(std::shared_ptr<Call> call) {
  MutexLock lock(mutex_);
  if (draining_) return false;
  const Call* key = call.get();
  calls_.emplace(key, std::move(call));
  return true;
}

void CallRegistry::Remove(const Call* call) {
  std::shared_ptr<Call> last;  // destroyed outside the lock
  MutexLock lock(mutex_);
  const auto found = calls_.find(call);
  if (found == calls_.end()) return;
  last = std::move(found->second);
  calls_.erase(found);
  if (calls_.empty()) empty_.NotifyAll();
}

void CallRegistry::BeginDrain() {
  {
    MutexLock lock(mutex_);
    draining_ = true;
  }
  for (const std::shared_ptr<Call>& call : Snapshot()) call->Drain();
}

bool CallRegistry::WaitUntilEmpty(Clock::time_point deadline) {
  MutexLock lock(mutex_);
  while (!calls_.empty()) {
    if (!empty_.WaitUntil(mutex_, deadline) && !calls_.empty()) return false;
  }
  return true;
}

void CallRegistry::RotateOlderThan(Clock::time_point limit) {
  for (const std::shared_ptr<Call>& call : Snapshot()) {
    if (call->start() < limit) call->Rotate();
  }
}

SlowReaders CallRegistry::CancelSlowReaders(Clock::time_point now) {
  // A caller that is only slow takes some of every write; only who has stopped pays for a budget that is exceeded.
  std::vector<std::shared_ptr<Call>> stalled;
  SlowReaders cancelled;
  for (std::shared_ptr<Call>& call : Snapshot()) {
    if (call->IsWritingSince(now - output_.write_timeout)) {
      cancelled.timed_out += call->Cancel() ? 1 : 0;
    } else if (call->IsWritingSince(now - output_.write_timeout / 10)) {
      stalled.push_back(std::move(call));
    }
  }
  if (stalled.empty()) return cancelled;
  const bool server_over = unsent_bytes() > output_.server_bytes;
  absl::flat_hash_map<std::string, std::int64_t> of_peer;
  for (const auto& call : stalled) of_peer[call->Peer()] += call->unsent_bytes();
  for (const auto& call : stalled) {
    const bool over =
        server_over || call->unsent_bytes() > output_.call_bytes || of_peer[call->Peer()] > output_.peer_bytes;
    if (over) cancelled.over_budget += call->Cancel() ? 1 : 0;
  }
  return cancelled;
}

std::int64_t CallRegistry::unsent_bytes() const {
  MutexLock lock(mutex_);
  std::int64_t bytes = 0;
  for (const auto& [key, call] : calls_) bytes += call->unsent_bytes();
  return bytes;
}

std::int64_t CallRegistry::size() const {
  MutexLock lock(mutex_);
  return static_cast<std::int64_t>(calls_.size());
}

std::vector<std::shared_ptr<Call>> CallRegistry::Snapshot() const {
  MutexLock lock(mutex_);
  std::vector<std::shared_ptr<Call>> calls;
  calls.reserve(calls_.size());
  for (const auto& [key, call] : calls_) calls.push_back(call);
  return calls;
}

}  // namespace expertd
