#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cpp/program/commands.h"
#include "client/cpp/program/layers.h"

namespace expertd::client {
namespace {

std::string Health(const Client& client, absl::string_view service) {
  const auto serving = client.IsServing(service);
  if (!serving.ok()) return std::string(absl::StatusCodeToString(serving.status().code()));
  return *serving ? "SERVING" : "NOT_SERVING";
}

void PrintServer(const Client& client, const std::string& endpoint) {
  const v1::GetServerInfoResponse& info = client.info();
  absl::PrintF("%-16s%s\n", "endpoint", endpoint);
  absl::PrintF("%-16s%s\n", "health", Health(client, ""));
  absl::PrintF("%-16s%s\n", "version", info.version());
  absl::PrintF("%-16s%s\n", "device", info.device());
  absl::PrintF("%-16s%s\n", "numerics id", info.numerics_id());
  absl::PrintF("%-16s%s\n", "features", absl::StrJoin(info.features(), ", "));
  absl::PrintF(
      "%-16s%d rows a request, %d rows a batch, k %d, %d bytes a message, %d in flight a stream, %d rows queued\n",
      "limits", info.max_rows_per_request(), info.max_rows_per_batch(), info.max_k(), info.max_message_bytes(),
      info.max_in_flight_per_stream(), info.max_queued_rows());
  absl::PrintF("%-16s%.1f ms\n", "default timeout", static_cast<double>(info.default_timeout_us()) / 1000);
}

void PrintLayers(const Client& client, const v1::ListLayersResponse& listed) {
  absl::PrintF("\n%-28s%-12s%-14s%9s%5s%8s%8s%8s  %-7s%10s  %s\n", "layer", "health", "family", "experts", "k",
               "hidden", "inter", "shared", "dtype", "MiB", "routing; path; fingerprint");
  for (const v1::Layer& layer : listed.layers()) {
    const std::string name = LayerName(layer);
    const std::string health = layer.state() == v1::Layer::STATE_LOADING ? "LOADING" : Health(client, name);
    absl::PrintF("%-28s%-12s%-14s%9d%5d%8d%8d%8d  %-7s%10.1f  %s; %s; %s\n", name, health, layer.family(),
                 layer.num_experts(), layer.experts_per_token(), layer.hidden_size(), layer.intermediate_size(),
                 layer.shared_intermediate_size(), layer.weight_dtype(),
                 static_cast<double>(layer.weight_bytes()) / (1 << 20), layer.routing(), layer.path(),
                 layer.fingerprint());
  }
}

int Status(const ClientOptions& options) {
  const auto client = Client::Connect(options);
  if (!client.ok()) return Complain(client.status(), kExitUnreachable);
  const auto listed = (*client)->ListLayers();
  if (!listed.ok()) return Complain(listed.status(), kExitFailed);
  PrintServer(**client, options.endpoint);
  PrintLayers(**client, *listed);
  return kExitOk;
}

}  // namespace

void AddStatusCommand(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<ClientOptions>();
  CLI::App* status = app.add_subcommand("status", "Show the server, its limits, its layers and its health");
  AddConnectionFlags(*status, *options);
  status->callback([options, exit_code] { *exit_code = Status(*options); });
}

}  // namespace expertd::client
