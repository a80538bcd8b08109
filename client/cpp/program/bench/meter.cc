#include "client/cpp/program/bench/meter.h"

#include <algorithm>

namespace expertd::client {

void Window::Merge(const Window& other) {
  seconds += other.seconds;
  latency.Merge(other.latency);
  service.Merge(other.service);
  for (const auto& [code, count] : other.statuses) statuses[code] += count;
  completed += other.completed;
  completed_rows += other.completed_rows;
}

std::int64_t Window::operations() const {
  std::int64_t sum = 0;
  for (const auto& [code, count] : statuses) sum += count;
  return sum;
}

double Window::FailedShare() const {
  const std::int64_t all = operations();
  return all == 0 ? 0 : static_cast<double>(all - latency.count()) / static_cast<double>(all);
}

double Counts::MeanBatchRows() const {
  double sum = 0;
  for (const auto& [rows, count] : batch_rows) sum += static_cast<double>(rows) * static_cast<double>(count);
  return answers == 0 ? 0 : sum / static_cast<double>(answers);
}

Meter::Meter(const Plan& plan) : plan_(plan), windows_(static_cast<std::size_t>(plan.windows)) {
  counts_.calls.resize(static_cast<std::size_t>(plan.calls));
}

int Meter::WindowAt(Nanos at) const {
  if (at < plan_.warmup) return -1;
  if (plan_.answers > 0) return Full() ? -1 : 0;
  return at >= end() ? -1 : static_cast<int>((at - plan_.warmup) / plan_.window);
}

void Meter::Answered(const Operation& operation, Nanos now, const v1::ForwardResult& result) {
  if (!Measures(operation, now)) return;
  ++counts_.answers;
  counts_.calls[static_cast<std::size_t>(operation.call)].Add(now - operation.sent);
  const v1::StageMicros& s = result.stages();
  const std::array<double, kStages.size()> us = {s.decode(), s.queue(),   s.stage_in(),  s.route(),
                                                 s.gemm(),   s.combine(), s.stage_out(), s.total()};
  for (std::size_t i = 0; i < us.size(); ++i) counts_.stage_us[i] += us[i];
  counts_.batch_requests += result.batch_requests();
  ++counts_.batch_rows[result.batch_rows()];
}

void Meter::Finished(const Operation& operation, std::int64_t rows, const absl::Status& status) {
  if (const int done = WindowAt(operation.finished); status.ok() && done >= 0) {
    ++windows_[static_cast<std::size_t>(done)].completed;
    windows_[static_cast<std::size_t>(done)].completed_rows += rows;
  }
  const int index = WindowOf(operation, operation.finished);
  if (index < 0) return;
  ++measured_;
  Window& window = windows_[static_cast<std::size_t>(index)];
  ++window.statuses[status.code()];
  if (plan_.open_loop) {
    if (operation.held_back) {
      ++counts_.held_back;
    } else {
      counts_.send_lag.Add(operation.started - operation.scheduled);
    }
  }
  if (!status.ok()) {
    if (counts_.first_error.ok()) counts_.first_error = status;
    return;
  }
  window.latency.Add(operation.finished - operation.scheduled);
  window.service.Add(operation.finished - operation.started);
  if (Full()) full_at_ = operation.finished;
}

void Meter::Close(Nanos now) {
  for (std::size_t i = 0; i < windows_.size(); ++i) {
    const Nanos begin = plan_.warmup + static_cast<Nanos>(i) * plan_.window;
    const Nanos end = std::min(now, plan_.answers > 0 ? full_at_ : begin + plan_.window);
    windows_[i].seconds = static_cast<double>(std::max<Nanos>(0, end - begin)) / kNanosPerSecond;
  }
}

}  // namespace expertd::client
