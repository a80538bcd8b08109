// One MoE layer on the CPU engine, beside what the machine could do at best:
//
//   OMP_NUM_THREADS=2 layer_bench [--threads 2] [--isa NAME] [--formats bf16,fp8,mxfp4] [--rows 1,8,64,1024] [--json F]
//
// Rows are fresh in every repetition, so that the experts hit change and their weights come from memory. `read` is the
// bytes of the experts hit (as published, no padding) over the time, as a share of the measured read bandwidth; `flops`
// the share of oneDNN's best large bf16 matmul. Time is the median; shares are of the median. Loading prints how far
// the process's resident memory rose above the weights.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "kernels/cpu/cpu_engine.h"
#include "tests/bench/cpu/ceilings.h"
#include "tests/support/random_layer.h"
#include "tests/support/rows.h"

namespace expertd::bench {
namespace {

struct Options {
  int threads = 0;
  std::string isa;
  std::vector<std::string> formats = {"bf16", "fp8", "mxfp4"};
  std::vector<std::int64_t> rows = {1, 8, 64, 1024};
  std::int64_t hidden = 2048, experts = 64, k = 8, intermediate = 1024;
  int repetitions = 15;
  bool f32_rows = false;
  std::string json;
};

WeightFormat FormatNamed(const std::string& name) {
  for (WeightFormat format : {WeightFormat::kBF16, WeightFormat::kF16, WeightFormat::kF32, WeightFormat::kFp8Block128,
                              WeightFormat::kMxfp4}) {
    if (name == WeightFormatName(format)) return format;
  }
  std::fprintf(stderr, "layer_bench: no format '%s'\n", name.c_str());
  std::exit(2);
}

// Bytes of `count` weights as a checkpoint stores them, scales included.
double PublishedBytes(WeightFormat format, double count) {
  switch (format) {
    case WeightFormat::kBF16:
    case WeightFormat::kF16:
      return count * 2;
    case WeightFormat::kF32:
      return count * 4;
    case WeightFormat::kFp8Block128:
      return count * (1 + 4.0 / (128 * 128));
    case WeightFormat::kMxfp4:
      return count * (0.5 + 1.0 / 32);
  }
  return 0;
}

// A line of /proc/self/status, in bytes.
std::int64_t ProcessMemory(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key + ":", 0) == 0) return std::stoll(line.substr(key.size() + 1)) * 1024;
  }
  return 0;
}

// From now on VmHWM counts anew.
void ResetPeak() { std::ofstream("/proc/self/clear_refs") << "5"; }

struct Measured {
  WeightFormat format = WeightFormat::kBF16;
  std::int64_t rows = 0;
  double bytes = 0.0;    // of the experts hit, as published
  double work = 0.0;     // floating-point operations of the experts
  double seconds = 0.0;  // median
  double best_seconds = 0.0;
  double experts_hit = 0.0;  // mean
  StageTimes stages;         // of the median
};

Measured Measure(Engine& engine, const Layer& layer, std::int64_t n, const Options& options) {
  const LayerSpec& spec = layer.spec();
  const DType dtype = options.f32_rows ? DType::kF32 : DType::kBF16;
  struct Run {
    double seconds;
    StageTimes stages;
  };
  std::vector<Run> runs;
  Measured measured;
  testing::Rows out = testing::Rows::Poisoned(n, spec.hidden_size, dtype);
  std::vector<std::int32_t> ids(n * spec.experts_per_token);
  for (int r = -1; r < options.repetitions; ++r) {  // the first warms up
    const testing::Rows in = testing::Rows::Random(n, spec.hidden_size, dtype, 1000 + r);
    const Segment segment = {.rows = n,
                             .input = in.row(0),
                             .output = out.row(0),
                             .input_dtype = dtype,
                             .output_dtype = dtype,
                             .routed_ids = ids.data()};
    StageTimes stages;
    const auto start = std::chrono::steady_clock::now();
    const absl::Status status = engine.Run(layer, {&segment, 1}, &stages);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (!status.ok()) {
      std::fprintf(stderr, "layer_bench: %s\n", std::string(status.message()).c_str());
      std::exit(1);
    }
    if (r < 0) continue;
    runs.push_back({seconds, stages});
    measured.experts_hit +=
        static_cast<double>(std::set<std::int32_t>(ids.begin(), ids.end()).size()) / options.repetitions;
  }
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.seconds < b.seconds; });
  measured.best_seconds = runs.front().seconds;
  measured.seconds = runs[runs.size() / 2].seconds;
  measured.stages = runs[runs.size() / 2].stages;
  return measured;
}

// One line of the table and one entry of the report.
void Print(const Measured& m, double read, double flops, nlohmann::json& report) {
  const std::string format(WeightFormatName(m.format));
  const double bandwidth = m.bytes / m.seconds, rate = m.work / m.seconds;
  std::printf("%-6s %6ld %6.1f %9.0f %9.0f %8.1f %6.1f%% %9.1f %6.1f%%  %.0f/%.0f/%.0f\n", format.c_str(), m.rows,
              m.experts_hit, m.seconds * 1e6, m.best_seconds * 1e6, bandwidth / 1e9, 100 * bandwidth / read, rate / 1e9,
              flops > 0 ? 100 * rate / flops : 0.0, m.stages.route * 1e6, m.stages.gemm * 1e6, m.stages.combine * 1e6);
  report["results"].push_back({{"format", format},
                               {"rows", m.rows},
                               {"experts_hit", m.experts_hit},
                               {"seconds_median", m.seconds},
                               {"seconds_best", m.best_seconds},
                               {"bytes_per_second", bandwidth},
                               {"read_share", bandwidth / read},
                               {"flops_per_second", rate},
                               {"flops_share", flops > 0 ? rate / flops : 0.0}});
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("One MoE layer on the CPU engine, beside this machine's ceilings");
  app.add_option("--threads", options.threads, "worker threads; 0: one a core");
  app.add_option("--isa", options.isa, "avx2, avx512, avx512bf16, amx; the best by default");
  app.add_option("--formats", options.formats, "of bf16, f16, f32, fp8, mxfp4")->delimiter(',');
  app.add_option("--rows", options.rows, "batch sizes")->delimiter(',');
  app.add_option("--hidden", options.hidden, "D");
  app.add_option("--experts", options.experts, "E");
  app.add_option("--experts-per-token", options.k, "K");
  app.add_option("--intermediate", options.intermediate, "F");
  app.add_option("--repetitions", options.repetitions, "timed runs a row");
  app.add_flag("--f32-rows", options.f32_rows, "rows in f32");
  app.add_option("--json", options.json, "also write the figures to this file");
  CLI11_PARSE(app, argc, argv);
  if (options.threads == 0) options.threads = static_cast<int>(std::thread::hardware_concurrency());

  auto engine = MakeCpuEngine({.threads = options.threads, .isa = options.isa});
  if (!engine.ok()) {
    std::fprintf(stderr, "layer_bench: %s\n", std::string(engine.status().message()).c_str());
    return 2;
  }
  std::printf("%s\n", (*engine)->info().description.c_str());
  std::printf("layer: E %ld, K %ld, D %ld, F %ld\n", options.experts, options.k, options.hidden, options.intermediate);
  double read = ReadBandwidth(options.threads, 8), flops = DnnlBf16MatmulRate(8);

  std::vector<Measured> all;
  nlohmann::json report = {{"engine", (*engine)->info().description}, {"results", nlohmann::json::array()}};
  for (const std::string& name : options.formats) {
    LayerSpec spec = testing::SimpleSpec(options.hidden, options.experts, options.k, options.intermediate);
    spec.expert_format = spec.shared_format = FormatNamed(name);
    const auto source = testing::MakeRandomLayer(spec);
    ResetPeak();
    const std::int64_t before = ProcessMemory("VmRSS");
    auto layer = (*engine)->LoadLayer(*source);
    if (!layer.ok()) {
      std::fprintf(stderr, "layer_bench: %s\n", std::string(layer.status().message()).c_str());
      return 1;
    }
    const double per_expert = 3.0 * static_cast<double>(options.hidden * options.intermediate);
    const double published = PublishedBytes(spec.expert_format, per_expert * static_cast<double>(options.experts));
    const double peak = static_cast<double>(ProcessMemory("VmHWM") - before);
    std::printf("%-6s load: %.0f MB published, %.0f MB packed, resident memory rose by %.0f MB at most (%.3f x)\n",
                name.c_str(), published / 1e6, static_cast<double>((*layer)->weight_bytes()) / 1e6, peak / 1e6,
                peak / published);
    report["load"][name] = {
        {"published_bytes", published}, {"packed_bytes", (*layer)->weight_bytes()}, {"peak_bytes", peak}};
    for (const std::int64_t n : options.rows) {
      Measured m = Measure(**engine, **layer, n, options);
      m.format = spec.expert_format;
      m.rows = n;
      m.bytes = PublishedBytes(spec.expert_format, per_expert * m.experts_hit);
      m.work = 2.0 * per_expert * static_cast<double>(n * options.k);
      all.push_back(m);
      // Neighbours on this machine only ever lower a ceiling: keep the best that was seen.
      read = std::max(read, ReadBandwidth(options.threads, 2));
    }
  }
  flops = std::max(flops, DnnlBf16MatmulRate(8));
  std::printf("ceilings: read %.1f GB/s, oneDNN bf16 matmul %.1f GFLOP/s, %d threads\n", read / 1e9, flops / 1e9,
              options.threads);
  std::printf("%-6s %6s %6s %9s %9s %8s %7s %9s %7s  route/gemm/combine us\n", "format", "rows", "hit", "us", "best us",
              "GB/s", "read", "GFLOP/s", "flops");
  for (const Measured& m : all) Print(m, read, flops, report);
  report["ceilings"] = {
      {"read_bytes_per_second", read}, {"dnnl_bf16_flops_per_second", flops}, {"threads", options.threads}};
  if (!options.json.empty()) std::ofstream(options.json) << report.dump(2) << "\n";
  return 0;
}

}  // namespace
}  // namespace expertd::bench

int main(int argc, char** argv) { return expertd::bench::Main(argc, argv); }
