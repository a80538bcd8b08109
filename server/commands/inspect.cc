#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/checkpoint/checkpoint.h"
#include "kernels/expert_path.h"
#include "nlohmann/json.hpp"
#include "server/commands/commands.h"

namespace expertd {
namespace {

constexpr int kModelInvalid = 3;

struct InspectFlags {
  std::string dir;
  std::string family;
  bool json = false;
};

std::string Text(absl::string_view view) { return std::string(view); }

nlohmann::ordered_json LayerJson(const LayerSpec& spec, std::int64_t bytes) {
  const RoutingRule& rule = spec.routing;
  return {
      {"layer", spec.layer},
      {"hidden_size", spec.hidden_size},
      {"num_experts", spec.num_experts},
      {"experts_per_token", spec.experts_per_token},
      {"intermediate_size", spec.intermediate_size},
      {"routing", spec.RoutingInWords()},
      {"router_bias", rule.router_bias},
      {"correction_bias", rule.correction_bias},
      {"n_group", rule.n_group},
      {"topk_group", rule.topk_group},
      {"renormalise", rule.renormalise != Renormalise::kNone},
      {"scale", std::stod(absl::StrCat(rule.scale))},  // as people wrote it, not as the nearest float widened
      {"weight_on_input", rule.weight_on_input},
      {"activation", Text(ActivationName(spec.activation))},
      {"expert_format", Text(WeightFormatName(spec.expert_format))},
      {"expert_bias", spec.expert_bias},
      {"shared_intermediate_size", spec.shared_intermediate_size},
      {"shared_gated", spec.shared_gated},
      {"shared_format", Text(WeightFormatName(spec.shared_format))},
      {"hopper_path", HopperPathInWords(spec)},
      {"bytes", bytes},
      {"spec", spec.Canonical()},
  };
}

void PrintJson(const InspectFlags& flags, const Checkpoint& checkpoint) {
  nlohmann::ordered_json out = {{"checkpoint", flags.dir}, {"family", checkpoint.family()}};
  out["layers"] = nlohmann::ordered_json::array();
  std::int64_t total = 0;
  for (const LayerSpec& spec : checkpoint.layers()) {
    out["layers"].push_back(LayerJson(spec, checkpoint.LayerBytes(spec.layer)));
    total += checkpoint.LayerBytes(spec.layer);
  }
  out["unsupported"] = nlohmann::ordered_json::array();
  for (const UnsupportedLayer& layer : checkpoint.unsupported()) {
    out["unsupported"].push_back({{"layer", layer.layer}, {"reason", layer.reason}});
  }
  out["bytes"] = total;
  std::cout << out.dump(2, ' ', /*ensure_ascii=*/false, nlohmann::ordered_json::error_handler_t::replace) << "\n";
}

// What follows the layer's number and bytes; equal for most layers of a model.
std::string InWords(const LayerSpec& spec) {
  std::string words = absl::StrFormat("D %d, F %d, %s, %s, %s%s", spec.hidden_size, spec.intermediate_size,
                                      spec.RoutingInWords(), ActivationName(spec.activation),
                                      WeightFormatName(spec.expert_format), spec.expert_bias ? " with biases" : "");
  if (spec.shared_intermediate_size > 0) {
    absl::StrAppendFormat(&words, ", shared expert F %d (%s%s)", spec.shared_intermediate_size,
                          WeightFormatName(spec.shared_format), spec.shared_gated ? ", gated" : "");
  }
  absl::StrAppend(&words, "; on Hopper ", HopperPathInWords(spec));
  return words;
}

std::string Bytes(std::int64_t bytes) {
  return bytes < 10'000'000 ? absl::StrFormat("%.1f kB", static_cast<double>(bytes) / 1e3)
                            : absl::StrFormat("%.1f MB", static_cast<double>(bytes) / 1e6);
}

void PrintText(const InspectFlags& flags, const Checkpoint& checkpoint) {
  std::cout << absl::StrFormat("%s: family %s, %d MoE layers\n", flags.dir, checkpoint.family(),
                               checkpoint.layers().size() + checkpoint.unsupported().size());
  std::int64_t total = 0;
  for (const LayerSpec& spec : checkpoint.layers()) {
    const std::int64_t bytes = checkpoint.LayerBytes(spec.layer);
    total += bytes;
    std::cout << absl::StrFormat("  layer %3d  %12s  %s\n", spec.layer, Bytes(bytes), InWords(spec));
  }
  for (const UnsupportedLayer& layer : checkpoint.unsupported()) {
    std::cout << absl::StrFormat("  layer %3d  unsupported   %s\n", layer.layer, layer.reason);
  }
  std::cout << absl::StrFormat("  in all     %12s\n", Bytes(total));
}

int Inspect(const InspectFlags& flags) {
  auto checkpoint = Checkpoint::Open(flags.dir, {.family = flags.family});
  if (!checkpoint.ok()) {
    if (flags.json) {
      const nlohmann::ordered_json out = {{"checkpoint", flags.dir}, {"error", Text(checkpoint.status().message())}};
      std::cout << out.dump(2, ' ', /*ensure_ascii=*/false, nlohmann::ordered_json::error_handler_t::replace) << "\n";
    }
    std::cerr << "expertd inspect: " << checkpoint.status().message() << "\n";
    return kModelInvalid;
  }
  flags.json ? PrintJson(flags, **checkpoint) : PrintText(flags, **checkpoint);
  if (!(*checkpoint)->layers().empty()) return 0;
  std::cerr << "expertd inspect: " << flags.dir << ": no MoE layer that can run\n";
  return kModelInvalid;
}

}  // namespace

void AddInspectCommand(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* command = app.add_subcommand(
      "inspect", "Show a checkpoint's family, its MoE layers and their bytes, and what cannot be run and why");
  command->add_option("dir", flags->dir, "Folder with config.json and safetensors files")->required();
  command->add_option("--family", flags->family, "Read it as this model_type, whatever config.json says");
  command->add_flag("--json", flags->json, "Print JSON");
  command->callback([flags, exit_code] { *exit_code = Inspect(*flags); });
}

}  // namespace expertd
