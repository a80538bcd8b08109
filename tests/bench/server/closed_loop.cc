#include "tests/bench/server/closed_loop.h"

#include <string>

#include "absl/strings/str_format.h"

namespace expertd::bench {

std::string StagesOf(const Closed& closed) {
  std::string text;
  for (std::size_t i = 0; i < std::size(kStages); ++i) {
    absl::StrAppendFormat(&text, "%s%s %.1f", i == 0 ? "" : ", ", kStages[i].name,
                          Us(closed.stages[i].Percentile(0.5)));
  }
  return text;
}

ClosedLoop::ClosedLoop(const client::Client& client, const client::Request& request, int callers) : request_(request) {
  for (int i = 0; i < callers; ++i) streams_.push_back(client.OpenStream(2));
}

absl::StatusOr<Closed> ClosedLoop::Run(std::chrono::milliseconds window) {
  begin_ = Clock::now() + window / 5;
  end_ = begin_ + window;
  {
    MutexLock lock(mutex_);
    open_ = std::ssize(streams_);
  }
  for (const auto& stream : streams_) Send(*stream);
  MutexLock lock(mutex_);
  while (open_ > 0) all_.Wait(mutex_);
  if (!failure_.ok()) return failure_;
  result_.rows_per_second /= std::chrono::duration<double>(window).count();
  return result_;
}

void ClosedLoop::Send(client::Stream& stream) {
  const Clock::time_point sent = Clock::now();
  const auto id = stream.Forward(request_, [this, &stream, sent](const absl::StatusOr<client::Answer>& answer) {
    if (Take(answer, sent)) Send(stream);
  });
  if (!id.ok()) Take(id.status(), sent);
}

bool ClosedLoop::Take(const absl::StatusOr<client::Answer>& answer, Clock::time_point sent) {
  const Clock::time_point now = Clock::now();
  MutexLock lock(mutex_);
  if (!answer.ok()) failure_ = answer.status();
  if (answer.ok() && now >= begin_ && now < end_) {
    const std::int64_t nanos = std::chrono::nanoseconds(now - sent).count();
    const v1::StageMicros& us = answer->result().stages();
    result_.rows_per_second += static_cast<double>(request_.head.rows());
    result_.latency.Add(nanos);
    result_.beside.Add(nanos - static_cast<std::int64_t>((us.route() + us.gemm() + us.combine()) * 1e3));
    for (std::size_t i = 0; i < std::size(kStages); ++i) {
      result_.stages[i].Add(static_cast<std::int64_t>((us.*kStages[i].micros)() * 1e3));
    }
    ++result_.batches[answer->result().batch_rows()];
  }
  const bool more = failure_.ok() && now < end_;
  if (!more && --open_ == 0) all_.NotifyAll();
  return more;
}

}  // namespace expertd::bench
