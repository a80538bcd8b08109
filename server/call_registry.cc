#include "server/call_registry.h"

#include <grpcpp/impl/codegen/server_context.h>

#include <utility>

namespace expertd {

absl::Status DrainingError() { return absl::UnavailableError("draining; unanswered ids were not run"); }

double Call::WriteEnds() {
  const Clock::rep since = writing_since_.exchange(0);
  if (since == 0) return 0;
  return std::chrono::duration<double>(Clock::now().time_since_epoch() - Clock::duration(since)).count();
}

bool Call::CancelIfWritingSince(Clock::time_point limit) {
  const Clock::rep since = writing_since_;
  if (since == 0 || Clock::duration(since) > limit.time_since_epoch()) return false;
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

int CallRegistry::CancelStuckWrites(Clock::time_point limit) {
  int cancelled = 0;
  for (const std::shared_ptr<Call>& call : Snapshot()) cancelled += call->CancelIfWritingSince(limit) ? 1 : 0;
  return cancelled;
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
