#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/checkpoint/checkpoint.h"
#include "kernels/expert_path.h"
#include "kernels/reference/compare.h"
#include "kernels/reference/io_file.h"
#include "server/commands/commands.h"
#include "server/commands/verify_subject.h"
#include "server/lifecycle.h"

namespace expertd {
namespace {

constexpr int kExitOutsideTolerance = 1;

// Tensor cores add up e4m3 with fewer bits than f32 has, which moves some results of the first product across a
// rounding of e4m3.
constexpr double kFp8RowsFactor = 2;

struct VerifyOptions {
  std::string checkpoint, endpoint, model, family, io;
  std::string device = "cpu";
  std::string path = "auto";
  std::int64_t layer = -1;  // all
  std::int64_t rows = 32;
  std::uint64_t seed = 1;
  double tolerance = 5e-3;
  bool json = false;
};

// Why the command ends early.
struct Failure {
  int exit_code;
  absl::Status status;
};

struct Skipped {
  std::int64_t layer;
  std::string reason;
};

// Everything that a run works on.
struct Inputs {
  std::unique_ptr<Checkpoint> checkpoint;  // may be null
  std::optional<reference::IoFile> io;
  std::unique_ptr<VerifySubjects> subjects;
  std::vector<SubjectLayer> layers;
  std::vector<Skipped> skipped;
};

// One comparison of one layer.
struct Check {
  std::string name;  // "file", "server-routed", "pre-routed"
  std::int64_t rows = 0;
  reference::Comparison result;
};

bool InCheckpoint(const Inputs& inputs, std::int64_t layer) {
  const std::vector<LayerSpec>& specs = inputs.checkpoint->layers();
  return std::any_of(specs.begin(), specs.end(), [&](const LayerSpec& spec) { return spec.layer == layer; });
}

// Which of the subject's layers can be judged; the others with the reason.
std::optional<Failure> ChooseLayers(const VerifyOptions& options, Inputs& inputs) {
  for (const SubjectLayer& layer : inputs.subjects->layers()) {
    if (options.layer >= 0 && layer.layer != options.layer) continue;
    if (inputs.io.has_value() && inputs.io->layers.count(layer.layer) == 0) {
      inputs.skipped.push_back({layer.layer, absl::StrCat(options.io, " has no output.", layer.layer)});
    } else if (!inputs.io.has_value() && !InCheckpoint(inputs, layer.layer)) {
      inputs.skipped.push_back({layer.layer, "the checkpoint does not have it"});
    } else if (inputs.io.has_value() && inputs.io->d != layer.hidden_size) {
      return Failure{kExitModelInvalid, absl::InvalidArgumentError(
                                            absl::StrFormat("%s: hidden_states has %d columns, layer %d has %d",
                                                            options.io, inputs.io->d, layer.layer, layer.hidden_size))};
    } else {
      inputs.layers.push_back(layer);
    }
  }
  if (inputs.checkpoint != nullptr) {
    for (const UnsupportedLayer& layer : inputs.checkpoint->unsupported()) {
      if (options.layer < 0 || options.layer == layer.layer) inputs.skipped.push_back({layer.layer, layer.reason});
    }
  }
  if (!inputs.layers.empty()) return std::nullopt;
  const std::string reason =
      inputs.skipped.empty()
          ? absl::StrCat("layer: there is no MoE layer ", options.layer < 0 ? "" : absl::StrCat(options.layer))
          : absl::StrCat("layer ", inputs.skipped[0].layer, ": ", inputs.skipped[0].reason);
  return Failure{kExitUsage, absl::NotFoundError(reason)};
}

std::optional<Failure> Prepare(const VerifyOptions& options, Inputs& inputs) {
  if (!options.checkpoint.empty()) {
    auto checkpoint = Checkpoint::Open(options.checkpoint, {.model = options.model, .family = options.family});
    if (!checkpoint.ok()) return Failure{kExitModelInvalid, checkpoint.status()};
    inputs.checkpoint = *std::move(checkpoint);
  }
  if (!options.io.empty()) {
    auto io = reference::ReadIoFile(options.io);
    if (!io.ok()) return Failure{kExitModelInvalid, io.status()};
    inputs.io = *std::move(io);
  }
  absl::StatusOr<std::unique_ptr<VerifySubjects>> subjects;
  if (!options.endpoint.empty()) {
    subjects = ConnectServerSubjects(options.endpoint, options.model);
  } else {
    std::vector<SubjectLayer> layers;
    for (const LayerSpec& spec : inputs.checkpoint->layers()) layers.push_back({spec.layer, spec.hidden_size});
    subjects = MakeEngineSubjects(options.device, options.path, std::move(layers));
  }
  if (!subjects.ok()) {
    const bool usage = absl::IsInvalidArgument(subjects.status()) || absl::IsNotFound(subjects.status());
    return Failure{usage ? kExitUsage : kExitDeviceInit, subjects.status()};
  }
  inputs.subjects = *std::move(subjects);
  return ChooseLayers(options, inputs);
}

// Random rows that bf16 holds exactly; routed to random experts when k > 0, some slots unused.
reference::LayerRows RandomRows(const VerifyOptions& options, const LayerSpec& spec, std::int64_t k) {
  std::mt19937_64 random(options.seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  reference::LayerRows rows;
  rows.n = options.rows;
  rows.k = k;
  for (std::int64_t i = 0; i < rows.n * spec.hidden_size; ++i)
    rows.rows.push_back(Bf16ToF32(F32ToBf16(normal(random))));
  std::vector<std::int32_t> experts(spec.num_experts);
  for (std::size_t e = 0; e < experts.size(); ++e) experts[e] = static_cast<std::int32_t>(e);
  for (std::int64_t i = 0; k > 0 && i < rows.n; ++i) {
    std::shuffle(experts.begin(), experts.end(), random);
    for (std::int64_t j = 0; j < k; ++j) {
      rows.topk_ids.push_back(k > 1 && random() % 8 == 0 ? -1 : experts[j]);
      rows.topk_weights.push_back(uniform(random));
    }
  }
  return rows;
}

absl::StatusOr<std::vector<Check>> CheckLayer(const VerifyOptions& options, const Inputs& inputs, std::int64_t layer,
                                              VerifySubject& subject, const LayerSource* source) {
  std::vector<Check> checks;
  if (inputs.io.has_value()) {
    const reference::LayerRows rows{.n = inputs.io->n, .rows = inputs.io->rows};
    const auto answer = subject.Run(rows, inputs.io->dtype);
    if (!answer.ok()) return answer.status();
    checks.push_back({"file", rows.n, reference::Compare(rows, *answer, inputs.io->layers.at(layer), source)});
    return checks;
  }
  for (const std::int64_t k : {std::int64_t{0}, source->spec().experts_per_token}) {
    reference::LayerRows rows = RandomRows(options, source->spec(), k);
    rows.fp8_rows = subject.path() == kFp8RowsPath;  // as the subject; what that costs is no mistake of its
    const auto answer = subject.Run(rows, DType::kBF16);
    if (!answer.ok()) return answer.status();
    checks.push_back(
        {k == 0 ? "server-routed" : "pre-routed", rows.n, reference::CompareToReference(*source, rows, *answer)});
  }
  return checks;
}

void PrintCheck(std::int64_t layer, const Check& check, double tolerance) {
  const reference::Comparison& r = check.result;
  absl::PrintF("layer %3d  %-13s  %4d rows  relative error %.2e  worst row %d (%.2e)", layer, check.name, check.rows,
               r.relative_error, r.worst_row, r.worst_row_error);
  if (r.routing_rows > 0) {
    absl::PrintF("  routing mismatches %d", r.routing_mismatches);
  } else if (check.name == "file") {
    absl::PrintF("  routing not in the file");
  }
  if (r.first_mismatch >= 0) absl::PrintF(" (first: row %d)", r.first_mismatch);
  if (r.routing_ties > 0) absl::PrintF("  ties %d", r.routing_ties);
  absl::PrintF("  %s\n", r.Within(tolerance) ? "ok" : "FAILED");
  std::fflush(stdout);
}

nlohmann::json ToJson(const Check& check, double tolerance) {
  const reference::Comparison& r = check.result;
  return {{"check", check.name},
          {"rows", check.rows},
          {"relative_error", r.relative_error},  // null when it is not finite
          {"worst_row", r.worst_row},
          {"worst_row_error", r.worst_row_error},
          {"routing_rows", r.routing_rows},
          {"routing_mismatches", r.routing_mismatches},
          {"first_mismatch", r.first_mismatch},
          {"routing_ties", r.routing_ties},
          {"ok", r.Within(tolerance)}};
}

// Opens, runs and judges one layer; adds its part to `report`.
std::optional<Failure> VerifyLayer(const VerifyOptions& options, Inputs& inputs, std::int64_t layer,
                                   nlohmann::json& report) {
  std::unique_ptr<LayerSource> source;
  if (inputs.checkpoint != nullptr && InCheckpoint(inputs, layer)) {
    auto opened = inputs.checkpoint->OpenLayer(layer);
    if (!opened.ok()) return Failure{kExitModelInvalid, opened.status()};
    source = *std::move(opened);
  }
  auto subject = inputs.subjects->Open(layer, source.get());
  if (!subject.ok()) {
    return Failure{absl::IsInvalidArgument(subject.status()) ? kExitModelInvalid : kExitDeviceInit, subject.status()};
  }
  if (source != nullptr && !options.endpoint.empty()) {
    const auto fingerprint = source->Fingerprint();
    if (!fingerprint.ok()) return Failure{kExitModelInvalid, fingerprint.status()};
    if (*fingerprint != (*subject)->fingerprint()) {
      return Failure{kExitOutsideTolerance,
                     absl::FailedPreconditionError(
                         absl::StrFormat("layer %d: the server has fingerprint %s, the checkpoint %s: other weights",
                                         layer, (*subject)->fingerprint(), *fingerprint))};
    }
  }
  const auto checks = CheckLayer(options, inputs, layer, **subject, source.get());
  if (!checks.ok()) return Failure{kExitDeviceInit, checks.status()};
  const double tolerance = options.tolerance * ((*subject)->path() == kFp8RowsPath ? kFp8RowsFactor : 1);
  nlohmann::json entry = {{"layer", layer},
                          {"fingerprint", (*subject)->fingerprint()},
                          {"path", (*subject)->path()},
                          {"tolerance", tolerance},
                          {"checks", nlohmann::json::array()}};
  for (const Check& check : *checks) {
    if (!options.json) PrintCheck(layer, check, tolerance);
    entry["checks"].push_back(ToJson(check, tolerance));
    if (!check.result.Within(tolerance)) report["ok"] = false;
  }
  report["layers"].push_back(std::move(entry));
  return std::nullopt;
}

int Fail(const Failure& failure) {
  std::fprintf(stderr, "expertd: %s\n", std::string(failure.status.message()).c_str());
  return failure.exit_code;
}

int Verify(const VerifyOptions& options) {
  if (options.checkpoint.empty() && (options.endpoint.empty() || options.io.empty())) {
    return Fail({kExitUsage, absl::InvalidArgumentError(
                                 "verify: --checkpoint DIR is missing; --endpoint alone needs --io FILE to compare "
                                 "with")});
  }
  Inputs inputs;
  if (const auto failure = Prepare(options, inputs)) return Fail(*failure);
  nlohmann::json report = {{"subject", inputs.subjects->description()},
                           {"checkpoint", options.checkpoint},
                           {"io", options.io},
                           {"tolerance", options.tolerance},
                           {"ok", true},
                           {"layers", nlohmann::json::array()},
                           {"skipped", nlohmann::json::array()}};
  if (!options.json) absl::PrintF("verify: %s\n", inputs.subjects->description());
  for (const Skipped& skipped : inputs.skipped) {
    if (!options.json) absl::PrintF("layer %3d  skipped: %s\n", skipped.layer, skipped.reason);
    report["skipped"].push_back({{"layer", skipped.layer}, {"reason", skipped.reason}});
  }
  for (const SubjectLayer& layer : inputs.layers) {
    if (const auto failure = VerifyLayer(options, inputs, layer.layer, report)) return Fail(*failure);
  }
  const bool ok = report["ok"];
  if (options.json) {
    absl::PrintF("%s\n", report.dump(2));
  } else {
    absl::PrintF("%s: %d layers, tolerance %.2e\n", ok ? "ok" : "FAILED", inputs.layers.size(), options.tolerance);
  }
  return ok ? kExitOk : kExitOutsideTolerance;
}

}  // namespace

void AddVerifyCommand(CLI::App& app, int* exit_code) {
  CLI::App* const command = app.add_subcommand(
      "verify", "Compare an engine, or a running server, with expected outputs: a file's, or the double reference's");
  const auto options = std::make_shared<VerifyOptions>();
  command->add_option("--checkpoint", options->checkpoint, "folder of the weights")->type_name("DIR");
  auto* const endpoint =
      command->add_option("--endpoint", options->endpoint, "ask this server instead of an engine of this process")
          ->type_name("HOST:PORT");
  command->add_option("--model", options->model, "the server's name of the model (default: its only one)");
  command->add_option("--family", options->family, "overrides config.json's model_type");
  command
      ->add_option("--io", options->io,
                   "safetensors file with hidden_states and output.<layer>; without it, random rows are compared with "
                   "the double reference, server-routed and pre-routed; of a layer on the path fp8-rows, a reference "
                   "that quantises rows in the same way, whereas a file's outputs then want --tolerance 5e-2")
      ->type_name("FILE");
  command->add_option("--layer", options->layer, "only this layer (default: all)")->check(CLI::NonNegativeNumber);
  command->add_option("--device", options->device, "cpu or cuda:<index>")->capture_default_str()->excludes(endpoint);
  command->add_option("--path", options->path, "On a GPU: auto, sorted, batched or fp8-rows, as of serve")
      ->capture_default_str()
      ->excludes(endpoint);
  command->add_option("--rows", options->rows, "random rows")->check(CLI::Range(1, 8192))->capture_default_str();
  command->add_option("--seed", options->seed, "of the random rows")->capture_default_str();
  command
      ->add_option("--tolerance", options->tolerance,
                   "largest relative error ||got - want|| / ||want||; on the path fp8-rows, half of it")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--json", options->json, "print one JSON object instead of text");
  command->footer(
      "Exit codes: 0 within tolerance, 1 not, 2 usage, 3 checkpoint or file invalid, 5 device or server "
      "cannot be used.");
  command->callback([options, exit_code] { *exit_code = Verify(*options); });
}

}  // namespace expertd
