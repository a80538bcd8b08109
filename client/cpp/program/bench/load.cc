#include "client/cpp/program/bench/load.h"

#include <sys/prctl.h>

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/mutex.h"

namespace expertd::client {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kTick{50};             // of progress
constexpr std::chrono::milliseconds kPauseAfterError{20};  // when the server names no time
constexpr int kMostInFlight = 65536;
constexpr int kUnaryInFlight = 1024;  // of an open loop, a connection; the server limits streams, not this

Nanos ToNanos(std::chrono::nanoseconds duration) { return duration.count(); }

Arrivals MakeArrivals(const LoadOptions& options) {
  switch (options.arrivals) {
    case ArrivalKind::kConstant:
      return Arrivals::Constant(options.rate);
    case ArrivalKind::kPoisson:
      return Arrivals::Poisson(options.rate, options.seed);
    case ArrivalKind::kTrace:
      break;
  }
  return Arrivals::Recorded(options.trace.at, options.rate);
}

int Slots(const Client& client, const LoadOptions& options) {
  if (!options.open_loop()) return options.concurrency;
  const int stream_limit = std::max(1, static_cast<int>(client.info().max_in_flight_per_stream()));
  const int each = options.mode == Mode::kStream ? stream_limit : kUnaryInFlight;
  const int most = std::min(kMostInFlight, each * client.connections());
  return options.max_in_flight > 0 ? std::min(options.max_in_flight, most) : most;
}

Book MakeBook(const LoadOptions& options, int slots, std::size_t layers, Nanos end) {
  const Book::Plan plan{
      .slots = slots, .calls = static_cast<int>(layers), .end = end, .timeout = ToNanos(options.timeout)};
  return options.open_loop() ? Book(plan, MakeArrivals(options)) : Book(plan);
}

Meter::Plan MeterPlan(const LoadOptions& options, std::size_t layers) {
  return {.open_loop = options.open_loop(),
          .calls = static_cast<int>(layers),
          .warmup = ToNanos(options.warmup),
          .window = ToNanos(options.duration),
          .windows = options.requests > 0 ? 1 : options.windows,
          .answers = options.requests};
}

class Load {
 public:
  Load(const Client& client, const Payloads& payloads, std::size_t layers, const LoadOptions& options)
      : client_(client),
        payloads_(payloads),
        options_(options),
        slots_(Slots(client, options)),
        meter_(MeterPlan(options, layers)),
        book_(MakeBook(options, slots_, layers, meter_.end())),
        rows_(static_cast<std::size_t>(slots_)),
        random_(options.seed) {
    if (options.mode == Mode::kUnary) return;
    const int each = (slots_ + client.connections() - 1) / client.connections();  // so that sending never blocks
    for (int i = 0; i < client.connections(); ++i) streams_.push_back(client.OpenStream(each));
  }

  LoadResult Run(const ShowProgress& show) {
    prctl(PR_SET_TIMERSLACK, 1UL);  // nanosecond: this thread sends on time
    start_ = Clock::now();
    {
      MutexLock lock(mutex_);
      Dispatch(show);
      AwaitAnswers();
      meter_.Close(Now());
    }
    return Result();
  }

 private:
  struct Rows {
    std::int64_t first = 0, count = 0;  // of payloads_
  };
  // The next request of an operation.
  struct ToSend {
    int slot = 0, call = 0;
    Rows rows;
    std::chrono::microseconds timeout{};
  };
  struct UseMark {
    double cpu_seconds = 0;
    Nanos at = 0;
  };

  Nanos Now() const { return ToNanos(Clock::now() - start_); }

  // Starts what is due and shows progress, until nothing more will start.
  void Dispatch(const ShowProgress& show) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Nanos next_show = 0;
    for (;;) {
      const Nanos now = Now();
      NoteOwnUse(now);
      const std::vector<ToSend> due = TakeDue(now);
      if (book_.Over(now) && due.empty()) return;
      if (!due.empty()) {
        mutex_.Unlock();
        for (const ToSend& send : due) Send(send);
        mutex_.Lock();
      } else if (now >= next_show) {
        const auto [fraction, text] = Progress(now);
        next_show = now + ToNanos(kTick);
        mutex_.Unlock();
        show(fraction, text);
        mutex_.Lock();
      } else {
        sleeping_until_ = std::min(book_.NextDue(), next_show);
        changed_.WaitUntil(mutex_, start_ + std::chrono::nanoseconds(sleeping_until_));
        sleeping_until_ = 0;
      }
    }
  }

  void NoteOwnUse(Nanos now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto note = [now](std::optional<UseMark>& mark, Nanos when) {
      if (!mark.has_value() && now >= when) mark = {CpuSecondsSoFar(), now};
    };
    note(use_begin_, ToNanos(options_.warmup));
    note(use_end_, meter_.end());
  }

  Rows& RowsOf(int slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return rows_[static_cast<std::size_t>(slot)]; }

  std::vector<ToSend> TakeDue(Nanos now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::vector<ToSend> due;
    while (const auto late = book_.GiveUp(now)) {
      meter_.Finished(*late, 0, absl::DeadlineExceededError("not sent within the timeout: too many were unanswered"));
    }
    while (auto next = StartOne(now)) due.push_back(*std::move(next));
    return due;
  }

  std::optional<ToSend> StartOne(Nanos now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto slot = book_.Start(now);
    if (!slot.has_value()) return std::nullopt;
    Rows& rows = RowsOf(*slot);
    rows.count = options_.rows.Rows(book_.operation(*slot).index, random_);
    rows.first = std::uniform_int_distribution<std::int64_t>(0, payloads_.rows() - rows.count)(random_);
    return Next(*slot, now);
  }

  ToSend Next(int slot, Nanos now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const Operation& operation = book_.operation(slot);
    const Nanos left = operation.scheduled + ToNanos(options_.timeout) - now;
    return {slot, operation.call, RowsOf(slot), std::chrono::microseconds(std::max<Nanos>(1, left / 1000))};
  }

  Request MakeRequest(int call, const Rows& rows) const {
    return payloads_.Make(static_cast<std::size_t>(call), rows.first, rows.count);
  }

  void Send(const ToSend& send) ABSL_LOCKS_EXCLUDED(mutex_) {
    auto done = [this, slot = send.slot](absl::StatusOr<Answer> answer) { Answered(slot, std::move(answer)); };
    Request request = MakeRequest(send.call, send.rows);
    request.head.set_timeout_us(static_cast<std::uint64_t>(send.timeout.count()));
    if (streams_.empty()) return client_.ForwardAsync(request, send.timeout, std::move(done));
    Stream& stream = *streams_[static_cast<std::size_t>(send.slot) % streams_.size()];
    const auto id = stream.Forward(std::move(request), std::move(done));
    if (id.ok()) return;
    MutexLock lock(mutex_);
    if (broken_.ok()) broken_ = id.status();
    book_.Stop();
    (void)book_.Answered(send.slot, /*ok=*/false, Now(), kNever);
    changed_.NotifyAll();
  }

  void Answered(int slot, absl::StatusOr<Answer> answer) ABSL_LOCKS_EXCLUDED(mutex_) {
    std::optional<ToSend> next;
    {
      MutexLock lock(mutex_);
      const Nanos now = Now();
      if (answer.ok()) {
        meter_.Answered(book_.operation(slot), now, answer->result());
        Keep(slot, *answer, now);
      }
      const Nanos pause =
          answer.ok() ? 0 : ToNanos(RetryAfter(answer.status()).value_or(std::chrono::microseconds(kPauseAfterError)));
      if (book_.Answered(slot, answer.ok(), now, now + pause)) {
        next = Next(slot, now);
      } else {
        meter_.Finished(book_.operation(slot), RowsOf(slot).count, answer.status());
        if (meter_.Full()) book_.Stop();
        next = StartOne(now);
      }
      if (book_.NextDue() < sleeping_until_ || book_.in_progress() == 0) changed_.NotifyAll();
    }
    if (next.has_value()) Send(*next);
  }

  // Reservoir sampling: every answer of the windows is kept with the same probability.
  void Keep(int slot, Answer& answer, Nanos now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto room = static_cast<std::size_t>(options_.samples);
    const Operation& operation = book_.operation(slot);
    if (room == 0 || !meter_.Measures(operation, now)) return;
    Sample sample{MakeRequest(operation.call, RowsOf(slot)), std::move(answer)};
    if (samples_.size() < room) {
      samples_.push_back(std::move(sample));
      return;
    }
    const auto seen = static_cast<std::uint64_t>(meter_.counts().answers);
    const std::uint64_t place = std::uniform_int_distribution<std::uint64_t>(0, seen - 1)(random_);
    if (place < room) samples_[place] = std::move(sample);
  }

  std::pair<double, std::string> Progress(Nanos now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const Nanos warmup = ToNanos(options_.warmup);
    if (now < warmup) return {static_cast<double>(now) / static_cast<double>(warmup), "warming up"};
    const double fraction = options_.requests > 0
                                ? static_cast<double>(meter_.measured()) / static_cast<double>(options_.requests)
                                : static_cast<double>(now - warmup) / static_cast<double>(meter_.end() - warmup);
    return {fraction, absl::StrFormat("%d measured, %d in progress", meter_.measured(), book_.in_progress())};
  }

  // On a stream the server may fail to answer, so what does not come in time is cancelled.
  void AwaitAnswers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto patience = Clock::now() + options_.timeout + std::chrono::seconds(1);
    while (book_.in_progress() > 0 && changed_.WaitUntil(mutex_, patience)) {
    }
    if (book_.in_progress() == 0) return;
    mutex_.Unlock();
    for (const auto& stream : streams_) stream->Abort();
    mutex_.Lock();
    while (book_.in_progress() > 0) changed_.Wait(mutex_);
  }

  LoadResult Result() ABSL_LOCKS_EXCLUDED(mutex_) {
    streams_.clear();  // waits for callbacks that have answered and not yet returned
    MutexLock lock(mutex_);
    LoadResult result{.windows = meter_.windows(), .counts = meter_.counts(), .broken = broken_};
    for (const Window& window : result.windows) result.total.Merge(window);
    result.samples = std::move(samples_);
    const UseMark end = use_end_.value_or(UseMark{CpuSecondsSoFar(), Now()});
    const UseMark begin = use_begin_.value_or(end);
    result.own = {.cpu_seconds = end.cpu_seconds - begin.cpu_seconds,
                  .wall_seconds = static_cast<double>(end.at - begin.at) / kNanosPerSecond,
                  .cores = UsableCores(),
                  .max_in_flight = slots_};
    return result;
  }

  const Client& client_;
  const Payloads& payloads_;
  const LoadOptions options_;
  const int slots_;
  std::vector<std::unique_ptr<Stream>> streams_;  // fixed while requests are in progress
  Clock::time_point start_;                       // set before the first one

  Mutex mutex_;
  CondVar changed_;
  Meter meter_ ABSL_GUARDED_BY(mutex_);
  Book book_ ABSL_GUARDED_BY(mutex_);
  std::vector<Rows> rows_ ABSL_GUARDED_BY(mutex_);  // by slot
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);
  std::vector<Sample> samples_ ABSL_GUARDED_BY(mutex_);
  std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_);
  Nanos sleeping_until_ ABSL_GUARDED_BY(mutex_) = 0;  // of Dispatch; 0: it is awake
  std::optional<UseMark> use_begin_ ABSL_GUARDED_BY(mutex_), use_end_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::Status CheckLoad(const v1::GetServerInfoResponse& server, const LoadOptions& options) {
  if (options.rows.most() > server.max_rows_per_request()) {
    return absl::InvalidArgumentError(absl::StrCat("rows: ", options.rows.text(), " asks for ", options.rows.most(),
                                                   ", the server takes 1..", server.max_rows_per_request()));
  }
  if (!options.open_loop() && options.concurrency < 1) {
    return absl::InvalidArgumentError(absl::StrCat("concurrency: ", options.concurrency, " is not at least 1"));
  }
  return absl::OkStatus();
}

LoadResult RunLoad(const Client& client, const Payloads& payloads, std::size_t layers, const LoadOptions& options,
                   const ShowProgress& show) {
  return Load(client, payloads, layers, options).Run(show);
}

}  // namespace expertd::client
