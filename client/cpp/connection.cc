#include "client/cpp/connection.h"

#include <grpc/grpc.h>
#include <grpcpp/create_channel.h>

#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/base/mutex.h"

namespace expertd::client {
namespace {

// One address or many: with one, round robin is the same as the first.
constexpr char kRoundRobin[] = R"({"loadBalancingConfig": [{"round_robin": {}}]})";
constexpr char kRoundRobinHealthy[] =
    R"({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}})";

constexpr std::chrono::seconds kReadEvery{1};  // of a token's file

absl::StatusOr<std::string> ReadFile(const std::string& path, absl::string_view field) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (path.empty()) return std::string();
  if (!file || !(text << file.rdbuf())) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": ", path, " cannot be read"));
  }
  return std::move(text).str();
}

bool StaysOnThisMachine(absl::string_view endpoint) {
  if (absl::StartsWith(endpoint, "unix")) return true;
  const auto scheme = endpoint.find(":///");
  const absl::string_view host = scheme == absl::string_view::npos ? endpoint : endpoint.substr(scheme + 4);
  return absl::StartsWith(host, "127.") || absl::StartsWith(host, "localhost:") || absl::StartsWith(host, "[::1]:");
}

class FileToken {
 public:
  explicit FileToken(std::string path) : path_(std::move(path)) {}

  absl::StatusOr<std::string> Get() {
    MutexLock lock(mutex_);
    const auto now = std::chrono::steady_clock::now();
    if (!token_.empty() && now < next_read_) return token_;
    next_read_ = now + kReadEvery;
    auto text = ReadFile(path_, "token file");
    if (!text.ok()) return absl::UnauthenticatedError(text.status().message());
    token_ = std::string(absl::StripAsciiWhitespace(text->substr(0, text->find('\n'))));
    if (token_.empty()) return absl::UnauthenticatedError(absl::StrCat("token file: ", path_, " is empty"));
    return token_;
  }

 private:
  const std::string path_;
  Mutex mutex_;
  std::chrono::steady_clock::time_point next_read_ ABSL_GUARDED_BY(mutex_);
  std::string token_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

TokenSource FixedToken(std::string token) {
  return [token = std::move(token)] { return token; };
}

TokenSource TokenFromFile(std::string path) {
  return [file = std::make_shared<FileToken>(std::move(path))] { return file->Get(); };
}

absl::Status Validate(const ClientOptions& options) {
  if (options.connections < 1) {
    return absl::InvalidArgumentError(absl::StrCat("connections: ", options.connections, " is not at least 1"));
  }
  if (options.tls.has_value() && options.credentials != nullptr) {
    return absl::InvalidArgumentError("tls: there are credentials too");
  }
  if (options.tls.has_value() && options.tls->certificate_file.empty() != options.tls->key_file.empty()) {
    return absl::InvalidArgumentError("tls: certificate_file and key_file come together");
  }
  const bool plaintext = !options.tls.has_value() && options.credentials == nullptr;
  if (options.token && plaintext && !StaysOnThisMachine(options.endpoint)) {
    return absl::InvalidArgumentError(absl::StrCat("token: ", options.endpoint, " is reached in plaintext; use tls"));
  }
  return Validate(options.retry);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> CredentialsOf(const ClientOptions& options) {
  if (options.credentials != nullptr) return options.credentials;
  if (!options.tls.has_value()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions pem;
  const struct {
    const char* field;
    const std::string& path;
    std::string& text;
  } files[] = {{"tls.ca_file", options.tls->ca_file, pem.pem_root_certs},
               {"tls.certificate_file", options.tls->certificate_file, pem.pem_cert_chain},
               {"tls.key_file", options.tls->key_file, pem.pem_private_key}};
  for (const auto& [field, path, text] : files) {
    auto read = ReadFile(path, field);
    if (!read.ok()) return read.status();
    text = *std::move(read);
  }
  return grpc::SslCredentials(pem);
}

std::shared_ptr<grpc::Channel> MakeChannel(const ClientOptions& options,
                                           const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                                           int max_message_bytes) {
  grpc::ChannelArguments arguments;
  // Without it channels with equal arguments share one connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(max_message_bytes);
  arguments.SetMaxSendMessageSize(max_message_bytes);
  // gRPC's retries keep a copy of every message; ours (retry.h) share the rows, and know pushback for any size.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetServiceConfigJSON(options.health_aware ? kRoundRobinHealthy : kRoundRobin);
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);  // names do not change how we call
  if (options.tls.has_value() && !options.tls->server_name.empty()) {
    arguments.SetSslTargetNameOverride(options.tls->server_name);
  }
  return grpc::CreateCustomChannel(options.endpoint, credentials, arguments);
}

absl::Status Authorize(const TokenSource& token, grpc::ClientContext& context) {
  if (!token) return absl::OkStatus();
  const auto text = token();
  if (!text.ok()) return text.status();
  context.AddMetadata("authorization", absl::StrCat("Bearer ", *text));
  return absl::OkStatus();
}

}  // namespace expertd::client
