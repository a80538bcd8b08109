#include "server/scheduler/job_book.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace expertd {
namespace {

std::int64_t Microseconds(Clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
}

absl::Status Expired(const Waiting& request, Clock::time_point now) {
  return absl::DeadlineExceededError(absl::StrCat("deadline: passed ", Microseconds(now - request.deadline),
                                                  " us before a batch formed, after ",
                                                  Microseconds(now - request.arrival), " us in the queue"));
}

}  // namespace

std::unique_ptr<JobEntry> MakeEntry(std::unique_ptr<Job> job, Clock::time_point now) {
  auto entry = std::make_unique<JobEntry>();
  entry->priority = std::clamp(job->priority, 0, kPriorities - 1);
  entry->arrival = entry->idle_since = now;
  entry->deadline = job->deadline;
  entry->rows = job->rows;
  entry->job = std::move(job);
  return entry;
}

std::uint64_t JobBook::Add(std::unique_ptr<JobEntry> entry) {
  entry->id = ++last_id_;
  entry->tenant = &tenants_.Enter(entry->job->tenant);
  Enqueue(*entry);
  staging_.Add(*entry);
  entries_.emplace(last_id_, std::move(entry));
  return last_id_;
}

RunningBatch JobBook::Begin(const BatchDecision& decision, const ServiceTime& service_time, Clock::time_point now,
                            FinishedJobs& finished) {
  for (Waiting* request : decision.expired) {
    Drop(static_cast<JobEntry&>(*request), Expired(*request, now), finished);
  }
  RunningBatch batch{.start = now};
  for (const Pick& pick : decision.batch) {
    JobEntry& entry = static_cast<JobEntry&>(*pick.request);
    batch.layer = entry.job->layer;
    batch.entries.push_back(&entry);
    batch.pieces.push_back({.job = entry.job.get(),
                            .first_row = entry.first_waiting(),
                            .rows = pick.rows,
                            .staged = staging_.Take(entry, pick.rows)});
    batch.rows += pick.rows;
    if (entry.running++ == 0) entry.report.queue += Seconds(now - entry.idle_since);
    entry.tenant->served[static_cast<std::size_t>(entry.priority)] = now;
    Dequeue(entry, pick.rows);
  }
  const double row_seconds = service_time.RowSeconds(batch.rows);
  for (std::size_t i = 0; i < batch.pieces.size(); ++i) {
    batch.entries[i]->tenant->Charge(static_cast<double>(batch.pieces[i].rows) * row_seconds);
  }
  load_.running.rows += batch.rows;
  load_.running.batches += batch.pieces.empty() ? 0 : 1;
  return batch;
}

void JobBook::End(const RunningBatch& batch, Clock::time_point now, FinishedJobs& finished) {
  load_.running.rows -= batch.rows;
  load_.running.batches -= 1;
  for (std::size_t i = 0; i < batch.pieces.size(); ++i) {
    const Piece& piece = batch.pieces[i];
    JobEntry& entry = *batch.entries[i];
    entry.report.stages = entry.report.stages + piece.stages;
    entry.report.rows = std::max(entry.report.rows, piece.batch_rows);
    entry.report.requests = std::max(entry.report.requests, piece.batch_requests);
    if (--entry.running == 0) entry.idle_since = now;
    entry.tenant->served[static_cast<std::size_t>(entry.priority)] = now;
    if (piece.status.ok()) {
      FinishIfDone(entry, finished);
    } else {
      Drop(entry, piece.status, finished);
    }
  }
}

void JobBook::Drop(std::uint64_t id, const absl::Status& reason, FinishedJobs& finished) {
  if (const auto it = entries_.find(id); it != entries_.end()) Drop(*it->second, reason, finished);
}

void JobBook::Begun(const StageOrder& order, const StagedRowsPtr& copy) {
  if (const auto it = entries_.find(order.job); it != entries_.end()) staging_.Begun(*it->second, order, copy);
}

void JobBook::DropWaiting(const absl::Status& reason, FinishedJobs& finished) {
  std::vector<JobEntry*> waiting;
  for (const auto& [id, entry] : entries_) {
    if (entry->rows > 0) waiting.push_back(entry.get());
  }
  for (JobEntry* entry : waiting) Drop(*entry, reason, finished);
}

void JobBook::Abandon(const absl::Status& reason, FinishedJobs& finished) {
  for (const auto& [id, entry] : entries_) {
    if (entry->running == 0 || !entry->job->done) continue;
    auto shell = std::make_unique<Job>();
    shell->layer = entry->job->layer;
    shell->arrival = entry->job->arrival;
    shell->done = std::exchange(entry->job->done, nullptr);
    finished.push_back({.job = std::move(shell), .status = reason, .report = entry->report});
  }
}

void JobBook::Enqueue(JobEntry& entry) {
  LayerQueue& queue = queues_[entry.job->layer.get()];
  load_.queued.batches -= BatchesOf(queue);
  queue.Add(entry);
  load_.queued.batches += BatchesOf(queue);
  load_.queued.rows += entry.rows;
  QueuedRows(entry) += entry.rows;
}

void JobBook::Dequeue(JobEntry& entry, std::int64_t rows) {
  const auto it = queues_.find(entry.job->layer.get());
  LayerQueue& queue = it->second;
  load_.queued.batches -= BatchesOf(queue);
  queue.Take(entry, rows);
  load_.queued.batches += BatchesOf(queue);
  load_.queued.rows -= rows;
  QueuedRows(entry) -= rows;
  if (queue.empty()) queues_.erase(it);
}

std::int64_t& JobBook::QueuedRows(const JobEntry& entry) {
  return load_.queued_rows[static_cast<std::size_t>(entry.priority)];
}

std::int64_t JobBook::BatchesOf(const LayerQueue& queue) const {
  return (queue.rows() + max_batch_rows_ - 1) / max_batch_rows_;
}

void JobBook::Drop(JobEntry& entry, const absl::Status& reason, FinishedJobs& finished) {
  if (entry.status.ok()) entry.status = reason;
  if (entry.rows > 0) {
    entry.ahead.copy = staging_.Take(entry, entry.rows);
    Dequeue(entry, entry.rows);
  }
  FinishIfDone(entry, finished);
}

void JobBook::FinishIfDone(JobEntry& entry, FinishedJobs& finished) {
  if (entry.rows > 0 || entry.running > 0) return;
  // An abandoned job was answered already; its buffers go with the entry.
  if (entry.job->done) {
    finished.push_back({.job = std::move(entry.job),
                        .status = std::move(entry.status),
                        .report = entry.report,
                        .copy = std::move(entry.ahead.copy)});
  }
  tenants_.Leave(*entry.tenant);
  entries_.erase(entry.id);
}

}  // namespace expertd
