#include "client/cpp/client.h"

#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>

#include <future>
#include <limits>
#include <optional>
#include <unordered_map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "expertd/v1/expertd.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "kernels/base/mutex.h"

namespace expertd::client {
namespace {

constexpr char kForwardMethod[] = "/expertd.v1.Expertd/Forward";
constexpr char kPushback[] = "grpc-retry-pushback-ms";

constexpr int kAnySize = -1;  // no limit on messages

// A call without a deadline waits for ever on a server that hangs; questions about the server are answered at once.
constexpr std::chrono::seconds kQuestionTimeout{10};

absl::Status NotConnected(const ClientOptions& options) {
  return absl::UnavailableError(
      absl::StrCat(options.endpoint, ": no connection within ", options.connect_timeout.count(), " ms"));
}

absl::StatusOr<Answer> ResultOf(const grpc::Status& status, const grpc::ClientContext& context,
                                grpc::ByteBuffer& response) {
  if (status.ok()) return DecodeAnswer(response);
  absl::Status error = FromGrpc(status);
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto pushback = trailers.find(kPushback);
  std::int64_t ms = 0;
  if (pushback != trailers.end() &&
      absl::SimpleAtoi(absl::string_view(pushback->second.data(), pushback->second.size()), &ms) && ms >= 0) {
    SetRetryAfter(error, std::chrono::milliseconds(ms));
  }
  return error;
}

}  // namespace

// The unary calls in progress. gRPC's callback threads must never drop the last reference to a channel (1.51 then tears
// down the queue that they run on, from one of its own threads): so a client outlives its calls.
class Client::Calls {
 public:
  explicit Calls(const Client& client) : client_(client) {}

  void Begin(grpc::ByteBuffer request, std::chrono::microseconds timeout, Done done) {
    auto owned = std::make_unique<Call>();
    Call* call = owned.get();
    call->request = std::move(request);
    call->done = std::move(done);
    if (timeout != kNoTimeout) call->deadline = std::chrono::system_clock::now() + timeout;
    {
      MutexLock lock(mutex_);
      calls_.emplace(call, std::move(owned));
    }
    Attempt(call);
  }

  void CancelAndWait() {
    MutexLock lock(mutex_);
    cancelled_ = true;
    for (const auto& [call, owned] : calls_) {
      if (call->context != nullptr) call->context->TryCancel();
      call->pause.Cancel();
    }
    while (!calls_.empty()) empty_.Wait(mutex_);
  }

 private:
  struct Call {
    grpc::ByteBuffer request;
    Done done;
    std::chrono::system_clock::time_point deadline = std::chrono::system_clock::time_point::max();
    int attempt = 0;
    std::unique_ptr<grpc::ClientContext> context;  // of this attempt; null: between two. Changes under mutex_
    grpc::ByteBuffer response;
    grpc::Alarm pause;
  };

  void Attempt(Call* call) ABSL_LOCKS_EXCLUDED(mutex_) {
    auto context = std::make_unique<grpc::ClientContext>();
    const bool has_deadline = call->deadline != std::chrono::system_clock::time_point::max();
    if (has_deadline) context->set_deadline(call->deadline);
    ++call->attempt;
    absl::Status refused = Authorize(client_.token_, *context);
    {
      MutexLock lock(mutex_);
      if (cancelled_) refused = absl::CancelledError("the client is being destroyed");
      call->context = std::move(context);
    }
    if (!refused.ok()) return Finish(call, std::move(refused));
    call->response.Clear();
    grpc::GenericStub(client_.NextChannel())
        .UnaryCall(call->context.get(), kForwardMethod, {}, &call->request, &call->response,
                   [this, call](const grpc::Status& status) { Attempted(call, status); });
  }

  void Attempted(Call* call, const grpc::Status& status) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::StatusOr<Answer> answer = ResultOf(status, *call->context, call->response);
    if (answer.ok()) {
      client_.retries_->Succeeded();
    } else if (const auto wait = WaitAfter(*call, answer.status()); wait.has_value()) {
      MutexLock lock(mutex_);
      call->context.reset();
      if (!cancelled_) {
        call->pause.Set(std::chrono::system_clock::now() + *wait, [this, call](bool) { Attempt(call); });
        return;
      }
    }
    Finish(call, std::move(answer));
  }

  std::optional<std::chrono::microseconds> WaitAfter(const Call& call, const absl::Status& error) const {
    const auto now = RetryClock::now();
    const bool has_deadline = call.deadline != std::chrono::system_clock::time_point::max();
    const auto deadline =
        has_deadline ? now + (call.deadline - std::chrono::system_clock::now()) : RetryClock::time_point::max();
    return client_.retries_->WaitAfter(call.attempt, error, now, deadline);
  }

  void Finish(Call* call, absl::StatusOr<Answer> answer) ABSL_LOCKS_EXCLUDED(mutex_) {
    call->done(std::move(answer));
    MutexLock lock(mutex_);
    calls_.erase(call);
    if (calls_.empty()) empty_.NotifyAll();  // under the lock: the waiter may destroy this
  }

  const Client& client_;
  Mutex mutex_;
  CondVar empty_;
  std::unordered_map<Call*, std::unique_ptr<Call>> calls_ ABSL_GUARDED_BY(mutex_);
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

Client::Client(const ClientOptions& options)
    : token_(options.token),
      retries_(std::make_shared<RetryBudget>(options.retry)),
      calls_(std::make_unique<Calls>(*this)) {}
Client::~Client() { calls_->CancelAndWait(); }

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const ClientOptions& options) {
  if (const absl::Status status = Validate(options); !status.ok()) return status;
  const auto credentials = CredentialsOf(options);
  if (!credentials.ok()) return credentials.status();
  const auto deadline = std::chrono::system_clock::now() + options.connect_timeout;
  std::unique_ptr<Client> client(new Client(options));
  {
    const auto channel = MakeChannel(options, *credentials, kAnySize);
    if (!channel->WaitForConnected(deadline)) return NotConnected(options);
    grpc::ClientContext context;
    context.set_deadline(deadline);
    if (const absl::Status status = Authorize(options.token, context); !status.ok()) return status;
    const grpc::Status status = v1::Expertd::NewStub(channel)->GetServerInfo(&context, {}, &client->info_);
    if (!status.ok()) {
      return absl::Status(FromGrpc(status).code(),
                          absl::StrCat(options.endpoint, ": no expertd answers: ", status.error_message()));
    }
  }
  const std::uint64_t limit = client->info_.max_message_bytes();
  const int max_message_bytes =
      limit > 0 && limit <= std::numeric_limits<int>::max() ? static_cast<int>(limit) : kAnySize;
  for (int i = 0; i < options.connections; ++i) {
    client->channels_.push_back(MakeChannel(options, *credentials, max_message_bytes));
    client->channels_.back()->GetState(/*try_to_connect=*/true);
  }
  for (const auto& channel : client->channels_) {
    if (!channel->WaitForConnected(deadline)) return NotConnected(options);
  }
  return client;
}

const std::shared_ptr<grpc::Channel>& Client::NextChannel() const {
  return channels_[next_.fetch_add(1, std::memory_order_relaxed) % channels_.size()];
}

absl::StatusOr<v1::ListLayersResponse> Client::ListLayers() const {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kQuestionTimeout);
  if (const absl::Status status = Authorize(token_, context); !status.ok()) return status;
  v1::ListLayersResponse response;
  const grpc::Status status = v1::Expertd::NewStub(channels_[0])->ListLayers(&context, {}, &response);
  if (!status.ok()) return FromGrpc(status);
  return response;
}

absl::StatusOr<bool> Client::IsServing(absl::string_view service) const {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kQuestionTimeout);
  if (const absl::Status status = Authorize(token_, context); !status.ok()) return status;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(std::string(service));
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = grpc::health::v1::Health::NewStub(channels_[0])->Check(&context, request, &response);
  if (!status.ok()) return FromGrpc(status);
  return response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
}

absl::StatusOr<Answer> Client::Forward(const Request& request, std::chrono::microseconds timeout) const {
  std::promise<absl::StatusOr<Answer>> promise;
  ForwardAsync(request, timeout, [&promise](absl::StatusOr<Answer> answer) { promise.set_value(std::move(answer)); });
  return promise.get_future().get();
}

void Client::ForwardAsync(const Request& request, std::chrono::microseconds timeout, Done done) const {
  if (absl::Status status = CheckRows(request, info_.max_rows_per_request()); !status.ok()) {
    return done(std::move(status));
  }
  calls_->Begin(EncodeForward(request), timeout, std::move(done));
}

std::unique_ptr<Stream> Client::OpenStream(int max_in_flight) const {
  const int server_limit = static_cast<int>(info_.max_in_flight_per_stream());
  if (max_in_flight <= 0) max_in_flight = server_limit > 0 ? server_limit : 64;
  return std::make_unique<Stream>(NextChannel(), StreamOptions{.max_in_flight = max_in_flight,
                                                               .max_rows = info_.max_rows_per_request(),
                                                               .token = token_,
                                                               .retries = retries_});
}

}  // namespace expertd::client
