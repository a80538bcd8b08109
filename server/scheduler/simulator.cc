#include "server/scheduler/simulator.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "server/scheduler/job_book.h"

namespace expertd {
namespace {

// Far from zero, where ages would be negative.
constexpr Clock::time_point kStart{std::chrono::hours(1)};

class TraceLayer : public Layer {
 public:
  const LayerSpec& spec() const override { return spec_; }
  const std::string& fingerprint() const override { return spec_.model; }
  std::int64_t weight_bytes() const override { return 0; }
  absl::string_view path() const override { return "simulated"; }

 private:
  LayerSpec spec_;
};

Clock::duration Duration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// What Scheduler does with threads, done with a list of events.
class Simulation {
 public:
  Simulation(const SimulatedServer& server, const std::vector<TraceRequest>& trace)
      : server_(server),
        trace_(trace),
        admission_(std::make_shared<Admission>(server.admission)),
        book_(server.limits.max_rows, server.admission.weights),
        places_(server.concurrency),
        fates_(trace.size()) {}

  std::vector<Fate> Run() {
    for (std::size_t next = 0; next < trace_.size() || !running_.empty() || look_again_;) {
      const auto end = running_.empty() ? kNever : running_.begin()->first;
      const auto arrival = next < trace_.size() ? kStart + trace_[next].at : kNever;
      const auto look = look_again_.value_or(kNever);
      now_ = std::min({end, arrival, look});
      if (now_ == look) look_again_.reset();
      if (now_ == end) {
        End();
      } else if (now_ == arrival) {
        Arrive(next++);
      }
      Begin();
    }
    return std::move(fates_);
  }

 private:
  static constexpr Clock::time_point kNever = Clock::time_point::max();

  void Arrive(std::size_t index) {
    const TraceRequest& request = trace_[index];
    const Clock::time_point deadline = now_ + request.timeout;
    absl::StatusOr<Ticket> ticket = admission_->Admit(request.rows, request.rows * server_.row_bytes, now_, deadline,
                                                      request.priority, request.tenant);
    if (!ticket.ok()) {
      fates_[index] = {ticket.status().code(), server_.cost.overhead_seconds};
      return;
    }
    LayerPtr& layer = layers_[request.layer];
    if (layer == nullptr) layer = std::make_shared<TraceLayer>();
    auto job = std::make_unique<Job>();
    job->layer = layer;
    job->tenant = request.tenant;
    job->rows = request.rows;
    job->priority = request.priority;
    job->arrival = now_;
    job->deadline = deadline;
    job->ticket = *std::move(ticket);
    job->done = [this, index](std::unique_ptr<Job> done, const absl::Status& status, const BatchReport&) {
      fates_[index] = {status.code(), Seconds(now_ - done->arrival) + server_.cost.overhead_seconds};
    };
    book_.Add(MakeEntry(std::move(job), now_));
    admission_->ObserveLoad(book_.load());
  }

  void Begin() {
    while (places_ > 0) {
      const ServiceTime service_time = admission_->service_time();
      BatchLimits limits = server_.limits;
      limits.row_seconds = service_time.RowSeconds(limits.max_rows);
      const BatchDecision decision = Decide(book_.queues(), limits, now_);
      look_again_ = decision.look_again;
      if (decision.batch.empty() && decision.expired.empty()) return;
      FinishedJobs expired;
      RunningBatch batch = book_.Begin(decision, service_time, now_, expired);
      Deliver(expired);
      if (!batch.pieces.empty()) {
        --places_;
        const double rows = static_cast<double>(batch.rows);
        const auto takes = Duration(server_.cost.batch_seconds + server_.cost.row_seconds * rows);
        running_.emplace(now_ + takes, std::move(batch));
      }
      admission_->ObserveLoad(book_.load());
    }
  }

  void End() {
    const auto first = running_.begin();
    const RunningBatch batch = std::move(first->second);
    running_.erase(first);
    ++places_;
    admission_->ObserveBatch(batch.rows, Seconds(now_ - std::max(batch.start, last_end_)));
    last_end_ = now_;
    FinishedJobs finished;
    book_.End(batch, now_, finished);
    admission_->ObserveLoad(book_.load());
    Deliver(finished);
  }

  static void Deliver(FinishedJobs& finished) {
    for (FinishedJob& job : finished) {
      const auto done = std::move(job.job->done);
      done(std::move(job.job), std::move(job.status), job.report);
    }
  }

  const SimulatedServer& server_;
  const std::vector<TraceRequest>& trace_;
  const std::shared_ptr<Admission> admission_;
  std::map<std::int64_t, LayerPtr> layers_;
  JobBook book_;
  int places_;
  std::multimap<Clock::time_point, RunningBatch> running_;  // by end
  std::optional<Clock::time_point> look_again_;
  Clock::time_point now_ = kStart, last_end_ = kStart;
  std::vector<Fate> fates_;
};

double Quantile(const std::vector<double>& sorted, double fraction) {
  if (sorted.empty()) return 0;
  const auto at = static_cast<std::size_t>(std::ceil(fraction * static_cast<double>(sorted.size())));
  return sorted[std::clamp<std::size_t>(at, 1, sorted.size()) - 1];
}

}  // namespace

double Capacity(const CostModel& cost, std::int64_t max_batch_rows, int concurrency) {
  const auto rows = static_cast<double>(max_batch_rows);
  return concurrency * rows / (cost.batch_seconds + cost.row_seconds * rows);
}

CostModel FitCost(const std::vector<std::pair<std::int64_t, double>>& batches, double overhead_seconds) {
  double x = 0, y = 0, xx = 0, xy = 0;
  for (const auto& [rows, seconds] : batches) {
    const auto r = static_cast<double>(rows);
    x += r, y += seconds, xx += r * r, xy += r * seconds;
  }
  const double n = std::max(1.0, static_cast<double>(batches.size()));
  const double variance = xx / n - x / n * (x / n), covariance = xy / n - x / n * (y / n);
  double per_row = variance > 0 ? std::max(0.0, covariance / variance) : 0;
  if (x > 0) per_row = std::min(per_row, y / x);
  return {.batch_seconds = y / n - per_row * x / n, .row_seconds = per_row, .overhead_seconds = overhead_seconds};
}

std::vector<Fate> Simulate(const SimulatedServer& server, const std::vector<TraceRequest>& trace) {
  return Simulation(server, trace).Run();
}

Forecast Summarise(const std::vector<TraceRequest>& trace, const std::vector<Fate>& fates) {
  Forecast forecast;
  std::vector<double> answered;
  for (const Fate& fate : fates) {
    if (fate.code == absl::StatusCode::kOk) answered.push_back(fate.seconds);
    if (fate.code == absl::StatusCode::kResourceExhausted) ++forecast.refused;
    if (fate.code == absl::StatusCode::kDeadlineExceeded) ++forecast.expired;
  }
  if (trace.empty()) return forecast;
  std::sort(answered.begin(), answered.end());
  forecast.p50 = Quantile(answered, 0.5);
  forecast.p99 = Quantile(answered, 0.99);
  const double seconds = std::chrono::duration<double>(trace.back().at).count();
  forecast.goodput = seconds > 0 ? static_cast<double>(answered.size()) / seconds : 0;
  forecast.refused /= static_cast<double>(trace.size());
  forecast.expired /= static_cast<double>(trace.size());
  return forecast;
}

}  // namespace expertd
