#include "tests/bench/server/open_loop.h"

#include <random>
#include <thread>
#include <utility>

#include "client/cpp/program/bench/arrivals.h"
#include "kernels/base/mutex.h"

namespace expertd::bench {
namespace {

using Clock = std::chrono::steady_clock;

class Recorder {
 public:
  Recorder(Clock::time_point start, std::chrono::milliseconds deadline, std::size_t shots)
      : start_(start), deadline_(deadline), open_(shots) {
    result_.fates.resize(shots);
  }

  void Sent(Clock::time_point due) {
    MutexLock lock(mutex_);
    ++result_.sent;
    result_.lateness.Add(std::chrono::nanoseconds(Clock::now() - due).count());
  }

  void Answered(std::size_t index, Clock::time_point due, const absl::StatusOr<client::Answer>& answer) {
    const auto latency = std::chrono::nanoseconds(Clock::now() - due);
    MutexLock lock(mutex_);
    ++result_.statuses[answer.status().code()];
    const bool good = answer.ok() && latency <= deadline_;
    result_.good += good ? 1 : 0;
    result_.fates[index] = {std::chrono::duration_cast<std::chrono::microseconds>(due - start_), good};
    if (answer.ok()) {
      result_.accepted.Add(latency.count());
      const v1::StageMicros& us = answer->result().stages();
      const double batch = us.stage_in() + us.route() + us.gemm() + us.combine() + us.stage_out();
      result_.batches.emplace_back(answer->result().batch_rows(), batch * 1e-6);
      result_.overhead.Add(latency.count() - static_cast<std::int64_t>((us.queue() + batch) * 1e3));
    } else if (absl::IsResourceExhausted(answer.status())) {
      result_.rejected.Add(latency.count());
    }
    if (--open_ == 0) all_.NotifyAll();
  }

  OpenResult Wait() {
    MutexLock lock(mutex_);
    while (open_ > 0) all_.Wait(mutex_);
    return std::move(result_);
  }

 private:
  const Clock::time_point start_;
  const std::chrono::milliseconds deadline_;
  Mutex mutex_;
  CondVar all_;
  std::size_t open_ ABSL_GUARDED_BY(mutex_);
  OpenResult result_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

Schedule Poisson(double rate, std::chrono::milliseconds duration, std::int64_t max_rows, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<std::int64_t> rows(1, max_rows);
  client::Arrivals arrivals = client::Arrivals::Poisson(rate, seed);
  Schedule schedule;
  const std::chrono::nanoseconds end = duration;
  for (std::chrono::nanoseconds at(arrivals.Next()); at < end; at = std::chrono::nanoseconds(arrivals.Next())) {
    schedule.push_back({std::chrono::duration_cast<std::chrono::microseconds>(at), rows(random)});
  }
  return schedule;
}

OpenResult RunOpen(const client::Client& client, const std::function<const client::Request&(std::int64_t rows)>& make,
                   const Schedule& schedule, std::chrono::milliseconds deadline) {
  const Clock::time_point start = Clock::now() + std::chrono::milliseconds(20);
  Recorder recorder(start, deadline, schedule.size());
  std::vector<std::unique_ptr<client::Stream>> streams;
  for (int i = 0; i < client.connections(); ++i) streams.push_back(client.OpenStream(1 << 20));
  for (std::size_t i = 0; i < schedule.size(); ++i) {
    const Clock::time_point due = start + schedule[i].at;
    std::this_thread::sleep_until(due);
    client::Request request = make(schedule[i].rows);
    request.head.set_timeout_us(static_cast<std::uint64_t>(std::chrono::microseconds(deadline).count()));
    const auto done = [&recorder, i, due](const absl::StatusOr<client::Answer>& answer) {
      recorder.Answered(i, due, answer);
    };
    const auto id = streams[i % streams.size()]->Forward(std::move(request), done);
    recorder.Sent(due);
    if (!id.ok()) recorder.Answered(i, due, id.status());
  }
  OpenResult result = recorder.Wait();
  result.seconds = schedule.empty() ? 0 : std::chrono::duration<double>(schedule.back().at).count();
  return result;
}

}  // namespace expertd::bench
