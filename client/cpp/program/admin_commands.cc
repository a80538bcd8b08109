#include <expertd/v1/admin.grpc.pb.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "client/cpp/connection.h"
#include "client/cpp/messages.h"
#include "client/cpp/program/commands.h"
#include "client/cpp/program/layers.h"

namespace expertd::client {
namespace {

struct AdminArguments {
  ClientOptions options;
  std::int64_t timeout_s = 600;  // reading weights takes as long as the disk does
  v1::LoadCheckpointRequest load;
  v1::UnloadLayerRequest unload;
};

// One call of the Admin service; prints the layers that it answers with.
template <class Request, class Response>
int Call(const AdminArguments& arguments, const Request& request,
         grpc::Status (v1::Admin::Stub::*method)(grpc::ClientContext*, const Request&, Response*)) {
  const auto credentials = CredentialsOf(arguments.options);
  if (!credentials.ok()) return Complain(credentials.status(), kExitUsage);
  const std::unique_ptr<v1::Admin::Stub> stub =
      v1::Admin::NewStub(MakeChannel(arguments.options, *credentials, /*max_message_bytes=*/-1));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(arguments.timeout_s));
  if (absl::Status status = Authorize(arguments.options.token, context); !status.ok()) {
    return Complain(status, kExitUsage);
  }
  Response response;
  const absl::Status status = FromGrpc(((*stub).*method)(&context, request, &response));
  if (!status.ok()) return Complain(status, absl::IsUnavailable(status) ? kExitUnreachable : kExitFailed);
  for (const v1::Layer& layer : response.layers()) {
    absl::PrintF("%s %.1f MiB %s\n", LayerName(layer), static_cast<double>(layer.weight_bytes()) / (1 << 20),
                 layer.fingerprint());
  }
  return kExitOk;
}

CLI::App* AddCommand(CLI::App& app, const char* name, const char* help, AdminArguments& arguments) {
  CLI::App* command = app.add_subcommand(name, help);
  AddConnectionFlags(*command, arguments.options);
  command->add_option("--timeout-s", arguments.timeout_s, "How long to wait for the server, seconds")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  return command;
}

}  // namespace

void AddAdminCommands(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<AdminArguments>();
  CLI::App* load = AddCommand(app, "load", "Have the server load layers of a checkpoint (admin role)", *arguments);
  load->add_option_function<std::string>(
          "--path", [arguments](const std::string& path) { arguments->load.set_path(path); },
          "Folder of the checkpoint, below the server's --model-root")
      ->required();
  load->add_option_function<std::string>(
      "--model", [arguments](const std::string& model) { arguments->load.set_model(model); },
      "Name to serve under (default: the folder's)");
  load->add_option_function<std::vector<std::uint32_t>>(
          "--layers",
          [arguments](const std::vector<std::uint32_t>& layers) {
            for (const std::uint32_t layer : layers) arguments->load.add_layers(layer);
          },
          "Layers to load, such as 0,3 (default: every MoE layer)")
      ->delimiter(',');
  load->add_flag_callback(
      "--replace", [arguments] { arguments->load.set_replace(true); }, "Take the place of layers of the same names");
  load->callback(
      [arguments, exit_code] { *exit_code = Call(*arguments, arguments->load, &v1::Admin::Stub::LoadCheckpoint); });

  CLI::App* unload =
      AddCommand(app, "unload", "Have the server stop serving a layer or a model (admin role)", *arguments);
  unload
      ->add_option_function<std::string>(
          "--model", [arguments](const std::string& model) { arguments->unload.set_model(model); }, "The model's name")
      ->required();
  unload->add_option_function<std::uint32_t>(
      "--layer", [arguments](const std::uint32_t& layer) { arguments->unload.set_layer(layer); },
      "Only this layer of it");
  unload->callback(
      [arguments, exit_code] { *exit_code = Call(*arguments, arguments->unload, &v1::Admin::Stub::UnloadLayer); });
}

}  // namespace expertd::client
