#include "client/cpp/program/bench/book.h"

#include <utility>

namespace expertd::client {

Book::Book(const Plan& plan) : plan_(plan), slots_(static_cast<std::size_t>(plan.slots)) {
  for (int slot = 0; slot < plan.slots; ++slot) ready_.push({0, slot});
}

Book::Book(const Plan& plan, Arrivals arrivals)
    : plan_(plan), arrivals_(std::move(arrivals)), slots_(static_cast<std::size_t>(plan.slots)) {
  for (int slot = plan.slots; slot-- > 0;) free_.push_back(slot);
  next_arrival_ = arrivals_->Next();
}

Nanos Book::NextDue() const {
  if (!arrivals_.has_value()) return ready_.empty() || ready_.top().at >= plan_.end ? kNever : ready_.top().at;
  if (!waiting_.empty()) {
    if (!free_.empty()) return waiting_.front();
    return plan_.timeout == kNever ? kNever : waiting_.front() + plan_.timeout;  // to be given up
  }
  return next_arrival_ < plan_.end ? next_arrival_ : kNever;
}

void Book::TakeArrivals(Nanos now) {
  for (; next_arrival_ <= now && next_arrival_ < plan_.end; next_arrival_ = arrivals_->Next()) {
    waiting_.push_back(next_arrival_);
  }
}

std::optional<int> Book::Start(Nanos now) {
  if (!arrivals_.has_value()) {
    if (NextDue() > now) return std::nullopt;
    const int slot = ready_.top().slot;
    ready_.pop();
    return Begin(slot, now, now);
  }
  TakeArrivals(now);
  if (waiting_.empty() || free_.empty()) return std::nullopt;
  const int slot = free_.back();
  free_.pop_back();
  const Nanos scheduled = waiting_.front();
  waiting_.pop_front();
  return Begin(slot, scheduled, now);
}

int Book::Begin(int slot, Nanos scheduled, Nanos now) {
  Operation& operation = slots_[static_cast<std::size_t>(slot)];
  operation = {.index = next_index_++, .scheduled = scheduled, .started = now, .sent = now};
  operation.held_back = scheduled < freed_at_;
  ++in_progress_;
  return slot;
}

std::optional<Operation> Book::GiveUp(Nanos now) {
  if (waiting_.empty() || plan_.timeout == kNever || now - waiting_.front() < plan_.timeout) return std::nullopt;
  Operation operation{.index = next_index_++, .scheduled = waiting_.front(), .started = now, .sent = now};
  operation.finished = now;
  operation.held_back = true;
  waiting_.pop_front();
  return operation;
}

bool Book::Answered(int slot, bool ok, Nanos now, Nanos free_at) {
  Operation& operation = slots_[static_cast<std::size_t>(slot)];
  if (ok && !stopped_ && operation.call + 1 < plan_.calls) {
    ++operation.call;
    operation.sent = now;
    return true;
  }
  operation.finished = now;
  --in_progress_;
  if (arrivals_.has_value()) {
    if (free_.empty()) freed_at_ = now;
    free_.push_back(slot);
  } else if (!stopped_) {
    ready_.push({free_at, slot});
  }
  return false;
}

void Book::Stop() {
  stopped_ = true;
  next_arrival_ = kNever;
  waiting_.clear();
  ready_ = {};
}

}  // namespace expertd::client
