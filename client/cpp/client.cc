#include "client/cpp/client.h"

#include <google/protobuf/wrappers.pb.h>
#include <grpc/grpc.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>

#include <condition_variable>
#include <future>
#include <limits>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "expertd/v1/expertd.grpc.pb.h"

namespace expertd::client {
namespace {

constexpr char kForwardMethod[] = "/expertd.v1.Expertd/Forward";
constexpr char kHealthMethod[] = "/grpc.health.v1.Health/Check";
constexpr char kPushback[] = "grpc-retry-pushback-ms";

constexpr int kAnySize = -1;  // no limit on messages

// A call without a deadline waits for ever on a server that hangs; questions about the server are answered at once.
constexpr std::chrono::seconds kQuestionTimeout{10};

std::shared_ptr<grpc::Channel> MakeChannel(const ClientOptions& options, int max_message_bytes) {
  grpc::ChannelArguments arguments;
  // Without it channels with equal arguments share one connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(max_message_bytes);
  arguments.SetMaxSendMessageSize(max_message_bytes);
  // gRPC's retries keep a copy of every message; a caller that wants to retry has the rows.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  return grpc::CreateCustomChannel(
      options.endpoint, options.credentials ? options.credentials : grpc::InsecureChannelCredentials(), arguments);
}

absl::Status NotConnected(const ClientOptions& options) {
  return absl::UnavailableError(
      absl::StrCat(options.endpoint, ": no connection within ", options.connect_timeout.count(), " ms"));
}

struct UnaryCall {
  grpc::ClientContext context;
  grpc::ByteBuffer request;
  grpc::ByteBuffer response;
  Client::Done done;

  absl::StatusOr<Answer> Result(const grpc::Status& status) {
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
};

// The health service's two messages are one field each: google.protobuf's wrappers have the same bytes (string 1, and
// an enum that reads as int32 1), so that its proto file is not needed here.
absl::StatusOr<bool> DecodeHealth(grpc::ByteBuffer& response) {
  grpc::Slice bytes;
  google::protobuf::Int32Value status;
  constexpr int kServing = 1;
  if (!response.DumpToSingleSlice(&bytes).ok() ||
      !status.ParseFromArray(bytes.begin(), static_cast<int>(bytes.size()))) {
    return absl::InternalError("the server's answer is no HealthCheckResponse");
  }
  return status.value() == kServing;
}

}  // namespace

// The unary calls in progress. gRPC's callback threads must never drop the last reference to a channel (1.51 then tears
// down the queue that they run on, from one of its own threads): so a client outlives its calls.
class Client::Calls {
 public:
  UnaryCall* Add() {
    auto call = std::make_unique<UnaryCall>();
    std::lock_guard lock(mutex_);
    return calls_.emplace(call.get(), std::move(call)).first->first;
  }

  // After the call's callback has returned.
  void Remove(UnaryCall* call) {
    std::lock_guard lock(mutex_);
    calls_.erase(call);
    if (calls_.empty()) empty_.notify_all();  // under the lock: the waiter may destroy this
  }

  void CancelAndWait() {
    std::unique_lock lock(mutex_);
    for (const auto& [call, owned] : calls_) call->context.TryCancel();
    empty_.wait(lock, [&] { return calls_.empty(); });
  }

 private:
  std::mutex mutex_;
  std::condition_variable empty_;
  std::unordered_map<UnaryCall*, std::unique_ptr<UnaryCall>> calls_;
};

Client::Client() : calls_(std::make_unique<Calls>()) {}
Client::~Client() { calls_->CancelAndWait(); }

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const ClientOptions& options) {
  if (options.connections < 1) {
    return absl::InvalidArgumentError(absl::StrCat("connections: ", options.connections, " is not at least 1"));
  }
  const auto deadline = std::chrono::system_clock::now() + options.connect_timeout;
  std::unique_ptr<Client> client(new Client());
  {
    const auto channel = MakeChannel(options, kAnySize);
    if (!channel->WaitForConnected(deadline)) return NotConnected(options);
    grpc::ClientContext context;
    context.set_deadline(deadline);
    const grpc::Status status = v1::Expertd::NewStub(channel)->GetServerInfo(&context, {}, &client->info_);
    if (!status.ok()) {
      return absl::Status(FromGrpc(status).code(),
                          absl::StrCat(options.endpoint, ": no expertd answers: ", status.error_message()));
    }
  }
  const std::uint64_t limit = client->info_.max_message_bytes();
  const int max_message_bytes =
      limit > 0 && limit <= std::numeric_limits<int>::max() ? static_cast<int>(limit) : kAnySize;
  for (int i = 0; i < options.connections; ++i) client->channels_.push_back(MakeChannel(options, max_message_bytes));
  for (const auto& channel : client->channels_) channel->GetState(/*try_to_connect=*/true);
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
  v1::ListLayersResponse response;
  const grpc::Status status = v1::Expertd::NewStub(channels_[0])->ListLayers(&context, {}, &response);
  if (!status.ok()) return FromGrpc(status);
  return response;
}

absl::StatusOr<bool> Client::IsServing(absl::string_view service) const {
  google::protobuf::StringValue name;
  name.set_value(std::string(service));
  const grpc::Slice bytes(name.SerializeAsString());
  const grpc::ByteBuffer request(&bytes, 1);
  grpc::ByteBuffer response;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kQuestionTimeout);
  std::promise<grpc::Status> done;
  grpc::GenericStub(channels_[0])
      .UnaryCall(&context, kHealthMethod, {}, &request, &response,
                 [&done](grpc::Status status) { done.set_value(std::move(status)); });
  const grpc::Status status = done.get_future().get();
  if (!status.ok()) return FromGrpc(status);
  return DecodeHealth(response);
}

absl::StatusOr<Answer> Client::Forward(const Request& request, std::chrono::microseconds timeout) const {
  std::promise<absl::StatusOr<Answer>> promise;
  ForwardAsync(request, timeout, [&promise](absl::StatusOr<Answer> answer) { promise.set_value(std::move(answer)); });
  return promise.get_future().get();
}

void Client::ForwardAsync(const Request& request, std::chrono::microseconds timeout, Done done) const {
  UnaryCall* call = calls_->Add();
  call->request = EncodeForward(request);
  call->done = std::move(done);
  if (timeout != kNoTimeout) call->context.set_deadline(std::chrono::system_clock::now() + timeout);
  grpc::GenericStub(NextChannel())
      .UnaryCall(&call->context, kForwardMethod, {}, &call->request, &call->response,
                 [call, calls = calls_.get()](const grpc::Status& status) {
                   call->done(call->Result(status));
                   calls->Remove(call);
                 });
}

std::unique_ptr<Stream> Client::OpenStream(int max_in_flight) const {
  const int server_limit = static_cast<int>(info_.max_in_flight_per_stream());
  if (max_in_flight <= 0) max_in_flight = server_limit > 0 ? server_limit : 64;
  return std::make_unique<Stream>(NextChannel(), max_in_flight);
}

}  // namespace expertd::client
