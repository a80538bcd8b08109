#include "tests/unit/server/server_fixture.h"

#include <arpa/inet.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/null_engine.h"
#include "tests/support/random_layer.h"

namespace expertd::testing {

GatedEngine::GatedEngine(std::int64_t row_buffer_bytes)
    : inner_(MakeNullEngine({.max_batch_rows = 4096, .row_buffer_bytes = row_buffer_bytes})), info_(inner_->info()) {
  info_.device_uuid = "GPU-of-the-test";
}

void GatedEngine::Close() {
  MutexLock lock(mutex_);
  open_ = false;
}

void GatedEngine::Open() {
  MutexLock lock(mutex_);
  open_ = true;
  changed_.NotifyAll();
}

void GatedEngine::FailWith(absl::Status status) {
  FailWhen([status = std::move(status)](absl::Span<const Segment>) { return status; });
}

void GatedEngine::FailWhen(Verdict verdict) {
  MutexLock lock(mutex_);
  verdict_ = std::move(verdict);
}

bool GatedEngine::WaitForBatches(int batches) {
  const auto deadline = Clock::now() + std::chrono::seconds(10);
  MutexLock lock(mutex_);
  while (batches_ < batches) {
    if (!changed_.WaitUntil(mutex_, deadline)) return batches_ >= batches;
  }
  return true;
}

int GatedEngine::batches() const {
  MutexLock lock(mutex_);
  return batches_;
}

absl::Status GatedEngine::Run(const Layer& layer, absl::Span<const Segment> segments, StageTimes* times) {
  {
    MutexLock lock(mutex_);
    ++batches_;
    changed_.NotifyAll();
    while (!open_) changed_.Wait(mutex_);
    if (verdict_) {
      if (absl::Status status = verdict_(segments); !status.ok()) return status;
    }
  }
  return inner_->Run(layer, segments, times);
}

std::vector<PlannedLayer> TinyPlan() {
  std::vector<PlannedLayer> plan;
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    LayerSpec spec = SimpleSpec(kHidden, 4, 2, 32);
    spec.model = "tiny";
    spec.layer = layer;
    spec.family = "test";
    plan.push_back({spec, [spec] {
                      return absl::StatusOr<std::unique_ptr<LayerSource>>(
                          MakeRandomLayer(spec, {.seed = static_cast<std::uint64_t>(spec.layer) + 1}));
                    }});
  }
  return plan;
}

v1::ForwardRequest MakeRequest(std::uint64_t id, std::int64_t rows) {
  v1::ForwardRequest request;
  request.set_model("tiny");
  request.set_layer(0);
  request.set_request_id(id);
  request.set_rows(rows);
  request.set_dtype(v1::DTYPE_BF16);
  std::string bytes(static_cast<std::size_t>(rows * kHidden * 2), '\0');
  for (std::size_t i = 0; i < bytes.size(); i += 2) {
    bytes[i] = static_cast<char>(i + id);
    bytes[i + 1] = static_cast<char>(0x3c + (id + i / 128) % 4);  // exponents near that of one
  }
  request.set_hidden_states(std::move(bytes));
  return request;
}

ServerTest::ServerTest() {
  options_.checkpoints = {"unused"};
  options_.listen = "127.0.0.1:0";
  options_.metrics_address = "127.0.0.1:0";
  options_.max_rows_per_request = 1024;
  options_.max_batch_rows = 1024;
}

ServerTest::~ServerTest() {
  if (server_ != nullptr && engine_ != nullptr) engine_->Open();  // a test that ends its server has ended the engine
}

void ServerTest::Start(bool load) {
  auto engine = std::make_unique<GatedEngine>();
  engine_ = engine.get();
  Start(std::move(engine), TinyPlan(), load);
}

void ServerTest::Start(std::unique_ptr<Engine> engine, std::vector<PlannedLayer> plan, bool load) {
  Server::Hooks hooks = {.on_engine_lost = [this](const absl::Status&) { ++engine_lost_; }};
  auto server = Server::Start(options_, std::move(engine), std::move(plan), std::move(hooks));
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  if (load) {
    const absl::Status loaded = server_->Load([] { return false; });
    ASSERT_TRUE(loaded.ok()) << loaded;
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  // Each test is a process of its own or not: never somebody else's connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  channel_ = grpc::CreateCustomChannel(server_->addresses().service, grpc::InsecureChannelCredentials(), arguments);
  stub_ = v1::Expertd::NewStub(channel_);
}

grpc::Status ServerTest::Forward(const v1::ForwardRequest& request, v1::ForwardResponse* response,
                                 std::chrono::milliseconds timeout) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  return stub_->Forward(&context, request, response);
}

std::string ServerTest::Scrape() {
  const std::vector<std::string> parts = absl::StrSplit(server_->addresses().metrics, ':');
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(std::stoi(parts.at(1))));
  inet_pton(AF_INET, parts[0].c_str(), &address.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
    if (write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size())) {
      char buffer[4096];
      for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, static_cast<std::size_t>(n));
    }
  }
  close(fd);
  return answer;
}

double ServerTest::Metric(const std::string& series) {
  for (const absl::string_view line : absl::StrSplit(Scrape(), '\n')) {
    if (!absl::StartsWith(line, series + " ")) continue;
    double value = -1;
    return absl::SimpleAtod(line.substr(series.size() + 1), &value) ? value : -1;
  }
  return -1;
}

int ServerTest::HealthOf(const std::string& service, const std::string& address) {
  const auto channel = address.empty() ? channel_ : grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  // HealthCheckRequest { service = 1 } and HealthCheckResponse { status = 1 }, whose generated code nobody ships.
  const grpc::Slice slice(absl::StrCat("\x0a", std::string(1, static_cast<char>(service.size())), service));
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check", grpc::internal::RpcMethod::NORMAL_RPC);
  const grpc::Status status = grpc::internal::BlockingUnaryCall<grpc::ByteBuffer, grpc::ByteBuffer>(
      channel.get(), method, &context, request, &response);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) return 0;
  grpc::Slice answer;
  if (!status.ok() || !response.DumpToSingleSlice(&answer).ok() || answer.size() != 2) return -1;
  return answer.begin()[1];
}

bool ServerTest::Eventually(const std::function<bool()>& holds) {
  const auto deadline = Clock::now() + std::chrono::seconds(10);
  while (!holds()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace expertd::testing
