#include "kernels/checkpoint/synth.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/base/mutex.h"
#include "kernels/checkpoint/config.h"
#include "kernels/checkpoint/families.h"
#include "kernels/checkpoint/safetensors.h"
#include "kernels/checkpoint/synth_fill.h"
#include "xxhash.h"

namespace expertd {
namespace {

constexpr std::int64_t kChunk = 4 << 20;

absl::StatusOr<const SynthPreset*> FindPreset(const std::string& name) {
  for (const SynthPreset& preset : SynthPresets()) {
    if (preset.name == name) return &preset;
  }
  return absl::InvalidArgumentError(absl::StrFormat(
      "--like: \"%s\" is unknown; known: %s", name,
      absl::StrJoin(SynthPresets(), ", ",
                    [](std::string* out, const SynthPreset& preset) { absl::StrAppend(out, preset.name); })));
}

absl::StatusOr<WeightFormat> ChooseFormat(const SynthOptions& options, const SynthPreset& preset,
                                          const TensorNames& names) {
  std::optional<WeightFormat> format;
  if (options.dtype.empty()) format = preset.format;
  for (const WeightFormat known : {WeightFormat::kBF16, WeightFormat::kFp8Block128, WeightFormat::kMxfp4}) {
    if (WeightFormatName(known) == options.dtype) format = known;
  }
  if (!format.has_value()) {
    return absl::InvalidArgumentError(absl::StrFormat("--dtype: \"%s\" is none of bf16, fp8, mxfp4", options.dtype));
  }
  const bool separate = names.layout == ExpertLayout::kSeparate;
  if ((*format == WeightFormat::kFp8Block128 && !separate) || (*format == WeightFormat::kMxfp4 && !names.interleaved)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--dtype: models like %s are not published in %s", preset.name, WeightFormatName(*format)));
  }
  return *format;
}

std::string Config(const SynthPreset& preset, const Family& family, WeightFormat format, std::int64_t hidden,
                   std::int64_t experts, std::int64_t width, std::int64_t layers) {
  nlohmann::ordered_json config = {
      {"model_type", std::string(preset.model_type)},
      {"hidden_size", hidden},
      {std::string(family.experts.names[0]), experts},
      {std::string(family.topk.names[0]), preset.experts_per_token},
      {std::string(family.ffn.names[0]), width},
      {"hidden_act", "silu"},
      {"num_hidden_layers", layers},
      {"dtype", "bfloat16"},
  };
  config.update(nlohmann::ordered_json::parse(absl::StrCat("{", preset.extra, "}")));
  if (format == WeightFormat::kFp8Block128) {
    config["quantization_config"] = {
        {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {128, 128}}};
  } else if (format == WeightFormat::kMxfp4) {
    config["quantization_config"] = {{"quant_method", "mxfp4"}};
  }
  return config.dump(2) + "\n";
}

// Lists the tensors of one layer, a group for each expert, in the order in which they are written.
class LayerLister {
 public:
  LayerLister(const LayerSpec& spec, const TensorNames& names, WeightFormat format, std::vector<SynthTensor>* out)
      : spec_(spec), names_(names), format_(format), out_(out) {}

  void List() {
    const std::int64_t hidden = spec_.hidden_size, experts = spec_.num_experts;
    Add(names_.router, DType::kBF16, {experts, hidden}, SynthFill::kNormal, 2.0 / std::sqrt(hidden));
    if (spec_.routing.router_bias) Add(names_.router_bias, DType::kBF16, {experts}, SynthFill::kNormal, 0.1);
    if (spec_.routing.correction_bias) {
      Add(names_.correction_bias[0], DType::kF32, {experts}, SynthFill::kNormal, 0.05);
    }
    if (names_.layout == ExpertLayout::kSeparate) {
      for (std::int64_t e = 0; e < experts; ++e) {
        Expert(absl::StrCat(names_.experts, e, "."), spec_.intermediate_size, names_);
      }
    } else {
      Stacked();
    }
    if (spec_.shared_intermediate_size > 0) {
      constexpr TensorNames kProjections = {
          .gate = "gate_proj.weight", .up = "up_proj.weight", .down = "down_proj.weight"};
      Expert(std::string(names_.shared[0]), spec_.shared_intermediate_size, kProjections);
    }
    if (spec_.shared_gated) Add(names_.shared_gate, DType::kBF16, {1, hidden}, SynthFill::kNormal, Sigma(hidden));
  }

 private:
  static double Sigma(std::int64_t in) { return 0.7 / std::sqrt(static_cast<double>(in)); }

  void Add(absl::string_view name, DType dtype, std::vector<std::int64_t> shape, SynthFill fill, double sigma) {
    out_->push_back({.info = {.name = absl::StrCat("model.layers.", spec_.layer, ".", name),
                              .dtype = dtype,
                              .shape = std::move(shape)},
                     .fill = fill,
                     .sigma = sigma});
  }

  void Matrix(const std::string& name, std::int64_t out, std::int64_t in) {
    if (format_ != WeightFormat::kFp8Block128) {
      return Add(name, DType::kBF16, {out, in}, SynthFill::kNormal, Sigma(in));
    }
    Add(name, DType::kF8E4M3, {out, in}, SynthFill::kFp8Codes, Sigma(in));
    Add(name + "_scale_inv", DType::kF32, {(out + 127) / 128, (in + 127) / 128}, SynthFill::kFp8Scales, Sigma(in));
  }

  void Expert(const std::string& at, std::int64_t width, const TensorNames& names) {
    Matrix(absl::StrCat(at, names.gate), width, spec_.hidden_size);
    Matrix(absl::StrCat(at, names.up), width, spec_.hidden_size);
    Matrix(absl::StrCat(at, names.down), spec_.hidden_size, width);
  }

  void Stacked() {
    const std::int64_t hidden = spec_.hidden_size, width = spec_.intermediate_size, experts = spec_.num_experts;
    const struct {
      std::string stem;
      std::int64_t out, in;
    } stacks[] = {{absl::StrCat(names_.experts, names_.gate), 2 * width, hidden},
                  {absl::StrCat(names_.experts, names_.down), hidden, width}};
    for (const auto& [stem, out, in] : stacks) {
      if (format_ == WeightFormat::kMxfp4) {
        Add(stem + "_blocks", DType::kU8, {experts, out, in / 32, 16}, SynthFill::kMxfp4Codes, Sigma(in));
        Add(stem + "_scales", DType::kU8, {experts, out, in / 32}, SynthFill::kMxfp4Scales, Sigma(in));
      } else {
        const bool rows = names_.layout == ExpertLayout::kStackedRows;
        Add(stem, DType::kBF16, {experts, rows ? out : in, rows ? in : out}, SynthFill::kNormal, Sigma(in));
      }
      if (spec_.expert_bias) Add(stem + "_bias", DType::kBF16, {experts, out}, SynthFill::kNormal, 0.1);
    }
  }

  const LayerSpec& spec_;
  const TensorNames& names_;
  const WeightFormat format_;
  std::vector<SynthTensor>* const out_;
};

std::vector<std::vector<SynthTensor>> Split(std::vector<SynthTensor> tensors, std::int64_t shard_bytes) {
  std::vector<std::vector<SynthTensor>> shards;
  std::int64_t held = 0;
  for (SynthTensor& tensor : tensors) {
    const std::int64_t bytes = tensor.info.bytes();
    if (shards.empty() || held + bytes > shard_bytes) {
      shards.emplace_back();
      held = 0;
    }
    held += bytes;
    shards.back().push_back(std::move(tensor));
  }
  return shards;
}

std::string ShardName(std::size_t shard, std::size_t shards) {
  return shards == 1 ? "model.safetensors" : absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, shards);
}

absl::Status WriteText(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (file) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
}

// Makes the folder ready: there, empty or cleared of a checkpoint, and with room for `bytes`.
absl::Status PrepareFolder(const std::string& dir, bool force, std::int64_t bytes) {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) return absl::UnavailableError(absl::StrCat(dir, ": ", error.message()));
  std::vector<fs::path> old;
  std::int64_t freed = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(dir, error)) {
    if (!force)
      return absl::FailedPreconditionError(absl::StrCat(dir, ": not empty; --force replaces a checkpoint in it"));
    const std::string name = entry.path().filename().string();
    const bool tensors = absl::StartsWith(name, "model") && absl::StrContains(name, ".safetensors");
    if (name != "config.json" && !tensors) continue;
    old.push_back(entry.path());
    freed += static_cast<std::int64_t>(entry.file_size(error));
  }
  struct statvfs info {};
  if (error || statvfs(dir.c_str(), &info) != 0) {
    return absl::UnavailableError(absl::StrCat(dir, ": ", error ? error.message() : std::strerror(errno)));
  }
  const std::int64_t free = static_cast<std::int64_t>(info.f_bavail) * static_cast<std::int64_t>(info.f_frsize) + freed;
  if (bytes > free) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%s: the weights take %.1f GB, only %.1f GB are free", dir, bytes / 1e9, free / 1e9));
  }
  for (const fs::path& path : old) fs::remove(path, error);
  if (error) return absl::UnavailableError(absl::StrCat(dir, ": ", error.message()));
  return absl::OkStatus();
}

struct Chunk {
  std::size_t tensor;
  std::int64_t offset, bytes;
};

// Threads take chunks in order, make and write them, and stop at the first error.
class ShardJob {
 public:
  ShardJob(const std::vector<SynthTensor>& tensors, std::uint64_t seed, SafetensorsWriter* writer,
           std::function<void(std::int64_t)> wrote)
      : tensors_(tensors), seed_(seed), writer_(writer), wrote_(std::move(wrote)) {
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      const std::int64_t bytes = tensors[t].info.bytes();
      for (std::int64_t at = 0; at < bytes; at += kChunk) chunks_.push_back({t, at, std::min(kChunk, bytes - at)});
    }
  }

  absl::Status Run(int threads) {
    std::vector<std::thread> workers;
    for (int i = 1; i < threads; ++i) workers.emplace_back([this] { Work(); });
    Work();
    for (std::thread& worker : workers) worker.join();
    MutexLock lock(mutex_);
    return status_;
  }

 private:
  void Work() {
    std::vector<std::byte> buffer(kChunk);
    std::optional<SynthFiller> filler;
    std::size_t filler_of = tensors_.size();
    for (std::size_t i = next_++; i < chunks_.size(); i = next_++) {
      const Chunk& chunk = chunks_[i];
      if (chunk.tensor != filler_of) {
        const SynthTensor& tensor = tensors_[chunk.tensor];
        filler.emplace(tensor, XXH3_64bits_withSeed(tensor.info.name.data(), tensor.info.name.size(), seed_));
        filler_of = chunk.tensor;
      }
      const absl::Span<std::byte> bytes(buffer.data(), static_cast<std::size_t>(chunk.bytes));
      filler->Fill(chunk.offset, bytes);
      const absl::Status status = writer_->Write(chunk.tensor, chunk.offset, bytes);
      MutexLock lock(mutex_);
      if (!status.ok()) status_ = status;
      if (!status_.ok()) return;
      wrote_(chunk.bytes);
    }
  }

  const std::vector<SynthTensor>& tensors_;
  const std::uint64_t seed_;
  SafetensorsWriter* const writer_;
  std::vector<Chunk> chunks_;
  std::atomic<std::size_t> next_{0};
  Mutex mutex_;
  const std::function<void(std::int64_t)> wrote_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<SynthPlan> PlanSynth(const SynthOptions& options) {
  auto found = FindPreset(options.like);
  if (!found.ok()) return found.status();
  const SynthPreset& preset = **found;
  const Family& family = *FindFamily(preset.model_type);
  const TensorNames& names = *family.names[0];
  auto format = ChooseFormat(options, preset, names);
  if (!format.ok()) return format.status();
  const std::int64_t has = (preset.layers - preset.first_moe + preset.moe_step - 1) / preset.moe_step;
  const std::int64_t layers = options.layers == 0 ? has : options.layers;
  if (layers < 0 || layers > has) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--layers: %d is outside 0..%d, the MoE layers of %s", layers, has, preset.name));
  }
  if (options.shard_bytes <= 0) {
    return absl::InvalidArgumentError(absl::StrFormat("shard_bytes: %d is not positive", options.shard_bytes));
  }
  const auto or_else = [](std::int64_t wanted, std::int64_t otherwise) { return wanted == 0 ? otherwise : wanted; };
  const std::int64_t last = preset.first_moe + (layers - 1) * preset.moe_step;
  SynthPlan plan = {.seed = options.seed};
  plan.config = Config(preset, family, *format, or_else(options.hidden_size, preset.hidden_size),
                       or_else(options.experts, preset.experts),
                       or_else(options.intermediate_size, preset.intermediate_size), last + 1);
  auto config = ModelConfig::Parse(plan.config);
  if (!config.ok()) return config.status();

  std::vector<SynthTensor> tensors;
  for (std::int64_t layer = preset.first_moe; layer <= last; layer += preset.moe_step) {
    auto spec = ReadSpec(family, *config, layer);
    if (!spec.ok()) return spec.status();
    if (*format == WeightFormat::kMxfp4 && (spec->hidden_size % 32 != 0 || spec->intermediate_size % 32 != 0)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("--hidden %d and --intermediate %d must be multiples of 32 in mxfp4", spec->hidden_size,
                          spec->intermediate_size));
    }
    spec->expert_bias = family.expert_bias;
    LayerLister(*spec, names, *format, &tensors).List();
  }
  for (const SynthTensor& tensor : tensors) plan.bytes += tensor.info.bytes();
  plan.shards = Split(std::move(tensors), options.shard_bytes);
  return plan;
}

absl::Status WriteSynth(const SynthPlan& plan, const std::string& dir, const SynthWriteOptions& options,
                        const SynthProgress& progress) {
  if (absl::Status status = PrepareFolder(dir, options.force, plan.bytes); !status.ok()) return status;
  const int threads = options.threads > 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  std::int64_t done = 0;
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  for (std::size_t shard = 0; shard < plan.shards.size(); ++shard) {
    const std::string name = ShardName(shard, plan.shards.size());
    std::vector<TensorInfo> infos;
    for (const SynthTensor& tensor : plan.shards[shard]) {
      infos.push_back(tensor.info);
      weight_map.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(tensor.info.name, name);
    }
    auto writer = SafetensorsWriter::Create(absl::StrCat(dir, "/", name), std::move(infos), {{"format", "pt"}});
    if (!writer.ok()) return writer.status();
    ShardJob job(plan.shards[shard], plan.seed, writer->get(), [&](std::int64_t bytes) {
      done += bytes;
      if (progress) progress(done, plan.bytes);
    });
    if (absl::Status status = job.Run(threads); !status.ok()) return status;
    if (absl::Status status = (*writer)->Finish(); !status.ok()) return status;
  }
  if (plan.shards.size() > 1) {
    const nlohmann::ordered_json index = {{"metadata", {{"total_size", plan.bytes}}}, {"weight_map", weight_map}};
    if (absl::Status status = WriteText(absl::StrCat(dir, "/model.safetensors.index.json"), index.dump(2) + "\n");
        !status.ok()) {
      return status;
    }
  }
  return WriteText(absl::StrCat(dir, "/config.json"), plan.config);
}

}  // namespace expertd
