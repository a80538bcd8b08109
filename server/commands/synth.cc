#include "kernels/checkpoint/synth.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/commands/commands.h"

namespace expertd {
namespace {

using Clock = std::chrono::steady_clock;

// A bar that is redrawn on a terminal; a line for every tenth elsewhere.
class Progress {
 public:
  Progress() : terminal_(isatty(STDERR_FILENO) != 0), start_(Clock::now()) {}

  void Show(std::int64_t bytes, std::int64_t total) {
    const double share = static_cast<double>(bytes) / static_cast<double>(total);
    if (terminal_ ? !Due(bytes == total) : static_cast<int>(share * 10) == tenths_) return;
    tenths_ = static_cast<int>(share * 10);
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    const std::string figures = absl::StrFormat("%3.0f %%  %.2f of %.2f GB, %.0f MB/s", share * 100, bytes / 1e9,
                                                total / 1e9, bytes / 1e6 / std::max(seconds, 1e-3));
    if (terminal_) {
      const auto width = static_cast<std::size_t>(share * 30);
      std::cerr << "\r[" << std::string(width, '#') << std::string(30 - width, ' ') << "] " << figures
                << (bytes == total ? "\n" : "") << std::flush;
    } else {
      std::cerr << figures << "\n";
    }
  }

 private:
  bool Due(bool last) {
    const Clock::time_point now = Clock::now();
    if (!last && now - shown_ < std::chrono::milliseconds(100)) return false;
    shown_ = now;
    return true;
  }

  const bool terminal_;
  const Clock::time_point start_;
  Clock::time_point shown_;
  int tenths_ = -1;
};

int Synth(const SynthOptions& options, const SynthWriteOptions& write, const std::string& out) {
  auto plan = PlanSynth(options);
  if (!plan.ok()) {
    std::cerr << "expertd synth: " << plan.status().message() << "\n";
    return 2;
  }
  Progress progress;
  const absl::Status status =
      WriteSynth(*plan, out, write, [&](std::int64_t bytes, std::int64_t total) { progress.Show(bytes, total); });
  if (!status.ok()) {
    std::cerr << "expertd synth: " << status.message() << "\n";
    return absl::IsFailedPrecondition(status) ? 2 : 1;
  }
  std::cout << absl::StrFormat("%s: %s, %d files of weights, %.2f GB\n", out, options.like, plan->shards.size(),
                               static_cast<double>(plan->bytes) / 1e9);
  return 0;
}

std::string PresetNames() {
  std::string names;
  for (const SynthPreset& preset : SynthPresets()) absl::StrAppend(&names, names.empty() ? "" : ", ", preset.name);
  return names;
}

}  // namespace

void AddSynthCommand(CLI::App& app, int* exit_code) {
  struct Flags {
    SynthOptions options;
    SynthWriteOptions write;
    std::string out;
  };
  auto flags = std::make_shared<Flags>();
  SynthOptions& options = flags->options;
  CLI::App* command = app.add_subcommand(
      "synth", "Write a checkpoint of random weights with a real model's shapes and names (its MoE layers only)");
  command->add_option("--like", options.like, absl::StrCat("Model: ", PresetNames()))->required();
  command->add_option("--out", flags->out, "Folder to write to; it must be empty or missing")->required();
  command->add_option("--layers", options.layers, "MoE layers to write; 0: all that the model has")
      ->capture_default_str();
  command->add_option("--experts", options.experts, "Experts of a layer; 0: as the model")->capture_default_str();
  command->add_option("--hidden", options.hidden_size, "Hidden size; 0: as the model")->capture_default_str();
  command->add_option("--intermediate", options.intermediate_size, "Expert intermediate size; 0: as the model")
      ->capture_default_str();
  command->add_option("--dtype", options.dtype, "bf16, fp8 or mxfp4; default: as the model is published");
  command->add_option("--seed", options.seed, "Equal seeds and flags give equal bytes")->capture_default_str();
  command->add_flag("--force", flags->write.force, "Write into a folder that is not empty, replacing its checkpoint");
  command->callback([flags, exit_code] { *exit_code = Synth(flags->options, flags->write, flags->out); });
}

}  // namespace expertd
