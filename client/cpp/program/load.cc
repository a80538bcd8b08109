#include "client/cpp/program/load.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/program/payload.h"
#include "client/cpp/program/progress.h"

namespace expertd::client {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kTick{50};             // of progress and of retries
constexpr std::chrono::milliseconds kPauseAfterError{20};  // when the server names no time

std::array<double, kStages.size()> StagesOf(const v1::StageMicros& s) {
  return {s.decode(), s.queue(), s.stage_in(), s.route(), s.gemm(), s.combine(), s.stage_out(), s.total()};
}

class ClosedLoop {
 public:
  ClosedLoop(const Client& client, const v1::Layer& layer, const LoadOptions& options)
      : client_(client), options_(options), random_(options.seed) {
    for (int i = 0; i < options.concurrency; ++i) {
      const std::uint64_t seed = options.seed * 1000003 + static_cast<std::uint64_t>(i);
      result_.slots.push_back(RandomRequest(layer, options.rows, options.pre_routed, seed));
      v1::ForwardRequest& head = result_.slots.back().head;
      head.set_timeout_us(static_cast<std::uint64_t>(std::chrono::microseconds(options.timeout).count()));
    }
    sent_at_.resize(result_.slots.size());
    if (options.mode == Mode::kStream) {
      const int each = (options.concurrency + client.connections() - 1) / client.connections();
      for (int i = 0; i < client.connections(); ++i) streams_.push_back(client.OpenStream(each));
    }
  }

  LoadResult Run() {
    const auto start = Clock::now();
    in_flight_ = result_.slots.size();
    for (std::size_t slot = 0; slot < result_.slots.size(); ++slot) Send(slot);
    Watch(start);
    Finish();
    result_.seconds = std::chrono::duration<double>(window_end_ - window_begin_).count();
    return std::move(result_);
  }

 private:
  enum class Phase { kWarmUp, kMeasure, kStop };

  struct Paused {
    std::size_t slot;
    Clock::time_point until;
  };

  void Send(std::size_t slot) {
    sent_at_[slot] = Clock::now();
    auto done = [this, slot](absl::StatusOr<Answer> answer) { Answered(slot, std::move(answer)); };
    if (streams_.empty()) return client_.ForwardAsync(result_.slots[slot], options_.timeout, std::move(done));
    const auto id = streams_[slot % streams_.size()]->Forward(result_.slots[slot], std::move(done));
    if (!id.ok()) {
      std::lock_guard lock(mutex_);
      result_.broken = id.status();
      Leave();
    }
  }

  void Answered(std::size_t slot, absl::StatusOr<Answer> answer) {
    {
      std::lock_guard lock(mutex_);
      const auto now = Clock::now();
      if (phase_ == Phase::kMeasure) Record(slot, now, answer);
      if (phase_ == Phase::kStop) return Leave();
      if (!answer.ok()) {
        paused_.push_back({slot, now + RetryAfter(answer.status()).value_or(kPauseAfterError)});
        return;
      }
    }
    Send(slot);
  }

  void Record(std::size_t slot, Clock::time_point now, absl::StatusOr<Answer>& answer) {  // under mutex_
    ++result_.statuses[answer.status().code()];
    if (!answer.ok()) {
      if (result_.first_error.ok()) result_.first_error = answer.status();
      return;
    }
    const v1::ForwardResult& result = answer->result();
    result_.latency.Add(std::chrono::nanoseconds(now - sent_at_[slot]).count());
    const auto stages = StagesOf(result.stages());
    for (std::size_t i = 0; i < stages.size(); ++i) result_.stage_us[i] += stages[i];
    result_.batch_rows += result.batch_rows();
    result_.batch_requests += result.batch_requests();
    Keep(slot, *answer);
    if (options_.requests > 0 && result_.latency.count() == options_.requests) Stop(now);
  }

  // Reservoir sampling: every answer of the window is kept with the same probability.
  void Keep(std::size_t slot, Answer& answer) {
    const auto room = static_cast<std::size_t>(options_.samples);
    if (result_.samples.size() < room) {
      result_.samples.push_back({slot, std::move(answer)});
    } else if (room > 0) {
      const auto seen = static_cast<std::uint64_t>(result_.latency.count());
      const std::uint64_t place = std::uniform_int_distribution<std::uint64_t>(0, seen - 1)(random_);
      if (place < room) result_.samples[place] = {slot, std::move(answer)};
    }
  }

  void Leave() {  // under mutex_
    if (--in_flight_ == 0) changed_.notify_all();
  }

  void Stop(Clock::time_point now) {  // under mutex_
    phase_ = Phase::kStop;
    window_end_ = now;
    changed_.notify_all();
  }

  // Moves the phases on, sends paused slots again and shows progress, until the window is over.
  void Watch(Clock::time_point start) {
    Progress progress;
    std::unique_lock lock(mutex_);
    while (phase_ != Phase::kStop && in_flight_ > 0) {
      changed_.wait_for(lock, kTick);
      const auto now = Clock::now();
      if (phase_ == Phase::kWarmUp && now >= start + options_.warmup) {
        phase_ = Phase::kMeasure;
        window_begin_ = now;
      } else if (phase_ == Phase::kMeasure && options_.requests == 0 && now >= window_begin_ + options_.duration) {
        Stop(now);
      }
      Show(progress, now, start);
      const std::vector<std::size_t> due = TakeDue(now);
      lock.unlock();
      for (const std::size_t slot : due) Send(slot);
      lock.lock();
    }
    if (phase_ == Phase::kWarmUp) window_begin_ = Clock::now();
    if (phase_ != Phase::kStop) Stop(Clock::now());
    for (; !paused_.empty(); paused_.pop_back()) Leave();
  }

  std::vector<std::size_t> TakeDue(Clock::time_point now) {  // under mutex_
    std::vector<std::size_t> due;
    std::erase_if(paused_, [&](const Paused& paused) {
      if (paused.until > now) return false;
      due.push_back(paused.slot);
      return true;
    });
    return due;
  }

  void Show(Progress& progress, Clock::time_point now, Clock::time_point start) {  // under mutex_
    const auto count = result_.latency.count();
    const std::chrono::duration<double> in_window = now - window_begin_;
    if (phase_ == Phase::kWarmUp) {
      progress.Show(std::chrono::duration<double>(now - start) / options_.warmup, "warming up");
    } else if (options_.requests > 0) {
      progress.Show(static_cast<double>(count) / static_cast<double>(options_.requests),
                    absl::StrCat(count, " requests"));
    } else {
      progress.Show(in_window / options_.duration,
                    absl::StrFormat("%d requests, p50 %.0f us", count,
                                    static_cast<double>(result_.latency.Percentile(0.5)) / 1000));
    }
  }

  // Waits for what is in flight; on a stream the server may fail to answer, so what does not come in time is cancelled.
  void Finish() {
    const auto idle = [&] { return in_flight_ == 0; };
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, options_.timeout + std::chrono::seconds(1), idle)) return;
    lock.unlock();
    for (const auto& stream : streams_) stream->Abort();
    lock.lock();
    changed_.wait(lock, idle);
  }

  const Client& client_;
  const LoadOptions options_;
  std::vector<std::unique_ptr<Stream>> streams_;  // fixed at construction
  std::vector<Clock::time_point> sent_at_;        // by slot; each touched by one request at a time

  std::mutex mutex_;  // guards everything below; result_.slots is fixed at construction
  std::condition_variable changed_;
  Phase phase_ = Phase::kWarmUp;
  Clock::time_point window_begin_, window_end_;
  std::size_t in_flight_ = 0;
  std::vector<Paused> paused_;
  LoadResult result_;
  std::mt19937_64 random_;
};

}  // namespace

absl::StatusOr<LoadResult> RunLoad(const Client& client, const v1::Layer& layer, const LoadOptions& options) {
  if (options.concurrency < 1) return absl::InvalidArgumentError("concurrency: must be at least 1");
  if (options.rows < 1 || options.rows > client.info().max_rows_per_request()) {
    return absl::InvalidArgumentError(absl::StrCat("rows: ", options.rows, " is not in 1..",
                                                   client.info().max_rows_per_request(), ", what the server takes"));
  }
  return ClosedLoop(client, layer, options).Run();
}

}  // namespace expertd::client
