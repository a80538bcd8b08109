// Speed of the CUDA operations on the current device: one line a cell, and JSON with --json FILE.
// usage: cuda_ops_bench [routing] [rows] [gemm] [tiles] [skew] [codes] [fp8rows] [backward] [batched] [LAYER...]
// [--json FILE] (no name: all)
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "tests/bench/cuda/cells.h"
#include "tests/bench/cuda/empty_kernel.h"

namespace expertd::bench {
namespace {

void RunCeilings(Timer& timer) {
  timer.Report({.op = "empty graph replay"}, kCopyBandwidth, [](cuda::Stream stream) {
    LaunchEmptyKernel(stream.handle);
    return absl::OkStatus();
  });
  constexpr std::int64_t kBytes = std::int64_t{4} << 30;
  const testing::DeviceArray<std::byte> from = RandomBf16(kBytes, 1.0f), to(kBytes);
  timer.Report({.op = "device copy", .shape = "4 GiB", .bytes = 2.0 * kBytes}, kCopyBandwidth,
               [&](cuda::Stream stream) {
                 EXPERTD_CHECK_CUDA(cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice,
                                                    static_cast<cudaStream_t>(stream.handle)));
                 return absl::OkStatus();
               });
}

bool IsLayer(const char* name) {
  return std::any_of(std::begin(kLayers), std::end(kLayers),
                     [&](const Layer& l) { return std::strcmp(l.name, name) == 0; });
}

int Main(int argc, char** argv) {
  if (!testing::HasDevice()) {
    std::printf("cuda_ops_bench: no CUDA device, nothing measured\n");
    return 0;
  }
  const char* json = nullptr;
  bool named = false;
  const auto wants = [&](const char* name) {
    for (int i = 1; i < argc; ++i) {
      if (std::strcmp(argv[i], name) == 0) return true;
    }
    return !named;
  };
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
      json = argv[++i];
    } else {
      named = named || !IsLayer(argv[i]);
    }
  }
  const std::vector<Layer> layers = ChosenLayers(argc, argv);
  Timer timer;
  RunCeilings(timer);
  if (wants("routing")) RunRoutingCells(timer);
  if (wants("rows")) RunRowCells(timer);
  if (wants("gemm")) RunGemmCells(timer, layers);
  if (wants("tiles")) RunFusedTileCells(timer, layers);
  if (wants("skew")) RunSkewCells(timer, layers);
  if (wants("codes")) RunCodeTileCells(timer);
  if (wants("fp8rows")) RunFp8RowCells(timer);
  if (wants("backward")) RunBackwardCells(timer, layers);
  if (wants("batched")) RunBatchedCells(timer, layers);
  if (json != nullptr && !timer.WriteJson(json)) {
    std::fprintf(stderr, "cuda_ops_bench: cannot write %s\n", json);
    return 1;
  }
  return 0;
}

}  // namespace

std::vector<Layer> ChosenLayers(int argc, char** argv) {
  std::vector<Layer> chosen;
  for (const Layer& layer : kLayers) {
    if (std::any_of(argv, argv + argc, [&](const char* name) { return std::strcmp(layer.name, name) == 0; })) {
      chosen.push_back(layer);
    }
  }
  return chosen.empty() ? std::vector<Layer>(std::begin(kLayers), std::end(kLayers)) : chosen;
}

}  // namespace expertd::bench

int main(int argc, char** argv) { return expertd::bench::Main(argc, argv); }
