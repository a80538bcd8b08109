#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/program/commands.h"
#include "client/cpp/program/layers.h"
#include "client/cpp/program/rows_file.h"

namespace expertd::client {
namespace {

struct ForwardFlags {
  ClientOptions client;
  LayerChoice layer;
  std::string in;
  std::string out;
  std::string output_dtype;
  std::string shared_expert = "default";
  bool return_routing = false;
  int timeout_ms = 30000;
};

Request MakeRequest(const RowsFile& file, std::int64_t first, std::int64_t count, const v1::Layer& layer,
                    const ForwardFlags& flags) {
  Request request = file.Rows(first, count);
  v1::ForwardRequest& head = request.head;
  head.set_model(layer.model());
  head.set_layer(layer.layer());
  head.set_expected_fingerprint(layer.fingerprint());
  head.set_return_routing(flags.return_routing);
  if (!flags.output_dtype.empty()) head.set_output_dtype(flags.output_dtype == "f32" ? v1::DTYPE_F32 : v1::DTYPE_BF16);
  if (flags.shared_expert != "default") head.set_shared_expert(flags.shared_expert == "on");
  return request;
}

void PrintAnswer(std::int64_t first, const Answer& answer) {
  const v1::ForwardResult& result = answer.result();
  const v1::StageMicros& us = result.stages();
  absl::PrintF(
      "rows %d to %d: %.1f us (decode %.1f, queue %.1f, in %.1f, route %.1f, gemm %.1f, combine %.1f, out %.1f), in a "
      "batch "
      "of %d rows of %d requests\n",
      first, first + result.rows() - 1, us.total(), us.decode(), us.queue(), us.stage_in(), us.route(), us.gemm(),
      us.combine(), us.stage_out(), result.batch_rows(), result.batch_requests());
}

int Forward(const ForwardFlags& flags) {
  const auto file = RowsFile::Open(flags.in);
  if (!file.ok()) return Complain(file.status(), kExitUsage);
  const auto client = Client::Connect(flags.client);
  if (!client.ok()) return Complain(client.status(), kExitUnreachable);
  const auto layer = ChooseLayer(**client, flags.layer);
  if (!layer.ok()) return Complain(layer.status(), kExitFailed);
  if (file->hidden_size() != layer->hidden_size()) {
    return Complain(
        absl::InvalidArgumentError(absl::StrCat(flags.in, ": tensor hidden_states: rows of ", file->hidden_size(),
                                                " elements, ", LayerName(*layer), " has ", layer->hidden_size())),
        kExitUsage);
  }
  AnswersFile answers(flags.out);
  // Larger files go in pieces: a row's answer does not depend on the rows beside it.
  const std::int64_t piece = std::max<std::int64_t>(1, (*client)->info().max_rows_per_request());
  for (std::int64_t first = 0; first < file->rows() || first == 0; first += piece) {
    const std::int64_t count = std::min(piece, file->rows() - first);
    const auto answer = (*client)->Forward(MakeRequest(*file, first, count, *layer, flags),
                                           std::chrono::milliseconds(flags.timeout_ms));
    if (!answer.ok()) return Complain(answer.status(), kExitFailed);
    PrintAnswer(first, *answer);
    answers.Add(*answer);
  }
  if (flags.out.empty()) return kExitOk;
  const absl::Status written = answers.Write(file->rows(), file->hidden_size());
  return written.ok() ? kExitOk : Complain(written, kExitFailed);
}

}  // namespace

void AddForwardCommand(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<ForwardFlags>();
  CLI::App* forward = app.add_subcommand("forward", "Send the rows of a safetensors file through one layer");
  AddConnectionFlags(*forward, flags->client);
  forward->add_option("--model", flags->layer.model, "Model of the layer (default: the first the server lists)");
  forward->add_option("--layer", flags->layer.layer, "Index of the layer (default: the first)");
  forward
      ->add_option(
          "--in", flags->in,
          "File with hidden_states [N, D] bf16 or f32; with topk_ids [N, K] i32 or i64 and topk_weights [N, K] f32 "
          "the rows are sent pre-routed")
      ->required();
  forward->add_option("--out", flags->out,
                      "File to write: output [N, D], and topk_ids, topk_weights with --return-routing");
  forward->add_option("--output-dtype", flags->output_dtype, "bf16 or f32 (default: that of hidden_states)")
      ->check(CLI::IsMember({"bf16", "f32"}));
  forward
      ->add_option("--shared-expert", flags->shared_expert,
                   "Whether the layer's shared expert is added (default: when server-routed)")
      ->check(CLI::IsMember({"default", "on", "off"}));
  forward->add_flag("--return-routing", flags->return_routing, "Ask for the experts and weights that were used");
  forward->add_option("--timeout-ms", flags->timeout_ms, "Of each request")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  forward->callback([flags, exit_code] { *exit_code = Forward(*flags); });
}

}  // namespace expertd::client
