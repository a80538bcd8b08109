#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/commands/commands.h"

namespace expertd {
namespace {

namespace health = grpc::health::v1;

struct ProbeFlags {
  std::string address = "127.0.0.1:8471";
  std::string service;
  std::int64_t timeout_ms = 1000;
};

// OK for SERVING. FailedPrecondition for any other answer, NotFound for an unknown name, otherwise what gRPC says.
absl::Status Ask(const ProbeFlags& flags) {
  const auto stub = health::Health::NewStub(grpc::CreateChannel(flags.address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(flags.timeout_ms));
  health::HealthCheckRequest request;
  request.set_service(flags.service);
  health::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, request, &response);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
    return absl::NotFoundError("the server knows no such service (\"\", live or <model>/<layer>)");
  }
  if (!status.ok()) return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  if (response.status() == health::HealthCheckResponse::SERVING) return absl::OkStatus();
  return absl::FailedPreconditionError(health::HealthCheckResponse::ServingStatus_Name(response.status()));
}

int Probe(const ProbeFlags& flags) {
  const absl::Status status = Ask(flags);
  const std::string subject = absl::StrCat(flags.address, " ", flags.service.empty() ? "\"\"" : flags.service);
  if (!status.ok()) {
    std::fprintf(stderr, "expertd: probe %s: %s\n", subject.c_str(), std::string(status.message()).c_str());
    return 1;
  }
  std::printf("%s: SERVING\n", subject.c_str());
  return 0;
}

}  // namespace

void AddProbeCommand(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<ProbeFlags>();
  CLI::App* command = app.add_subcommand("probe", "Ask a server's health; exit code 0 for SERVING, else 1");
  command
      ->add_option("--address", flags->address,
                   "HOST:PORT or unix:PATH of a plaintext listener: serve's --health-address, or its --listen")
      ->envname("EXPERTD_PROBE_ADDRESS")
      ->capture_default_str();
  command->add_option("--service", flags->service,
                      "live: the process works; MODEL/LAYER: that layer serves; empty: everything configured serves");
  command->add_option("--timeout-ms", flags->timeout_ms, "How long the answer may take, milliseconds")
      ->check(CLI::Range(1, 60'000))
      ->capture_default_str();
  command->callback([flags, exit_code] { *exit_code = Probe(*flags); });
}

}  // namespace expertd
