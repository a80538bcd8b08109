#include "tests/bench/cuda/timer.h"

#include <algorithm>
#include <cstdio>

#include "kernels/tensor.h"
#include "tests/support/random.h"

namespace expertd::bench {
namespace {

constexpr int kReplays = 20, kWarmUps = 3;
constexpr std::int64_t kFlushBytes = std::int64_t{256} << 20;

}  // namespace

Timer::Timer() : flush_(kFlushBytes) {}

double Timer::Microseconds(const Enqueue& enqueue, const Enqueue& prepare) {
  const auto check = [&](const Enqueue& what) {
    if (const absl::Status status = what(stream_); !status.ok()) {
      std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
      std::abort();
    }
  };
  const auto prepared = [&] {
    if (prepare) check(prepare);
  };
  EXPERTD_CHECK_CUDA(cudaDeviceSynchronize());  // arrays are filled on another stream
  prepared();
  check(enqueue);  // loads the kernels
  const testing::DeviceGraph graph(stream_, [&] { check(enqueue); });
  cudaEvent_t start, stop;
  EXPERTD_CHECK_CUDA(cudaEventCreate(&start));
  EXPERTD_CHECK_CUDA(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < kWarmUps + kReplays; ++i) {
    prepared();
    EXPERTD_CHECK_CUDA(cudaMemsetAsync(flush_.data(), 0, flush_.Bytes(), stream_.get()));
    EXPERTD_CHECK_CUDA(cudaEventRecord(start, stream_.get()));
    graph.Replay(stream_);
    EXPERTD_CHECK_CUDA(cudaEventRecord(stop, stream_.get()));
    EXPERTD_CHECK_CUDA(cudaStreamSynchronize(stream_.get()));
    float milliseconds = 0;
    EXPERTD_CHECK_CUDA(cudaEventElapsedTime(&milliseconds, start, stop));
    if (i >= kWarmUps) times.push_back(milliseconds);
  }
  EXPERTD_CHECK_CUDA(cudaEventDestroy(start));
  EXPERTD_CHECK_CUDA(cudaEventDestroy(stop));
  std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
  return times[kReplays / 2] * 1e3;
}

void Timer::Report(Cell cell, double bandwidth, const Enqueue& enqueue, const Enqueue& prepare) {
  cell.microseconds = Microseconds(enqueue, prepare);
  if (cell.roof == 0) cell.roof = std::max(cell.bytes / bandwidth, cell.flops / kBf16Rate) * 1e6;
  std::printf("%-26s %-34s N %6lld %10.1f us %7.0f GB/s %7.1f TFLOP/s %5.1f %% of roof\n", cell.op.c_str(),
              cell.shape.c_str(), static_cast<long long>(cell.rows), cell.microseconds,
              cell.bytes / cell.microseconds * 1e-3, cell.flops / cell.microseconds * 1e-6,
              cell.roof / cell.microseconds * 100);
  std::fflush(stdout);
  cells_.push_back(std::move(cell));
}

bool Timer::WriteJson(const std::string& path) const {
  std::FILE* const file = std::fopen(path.c_str(), "w");
  if (file == nullptr) return false;
  std::fprintf(file, "[\n");
  for (std::size_t i = 0; i < cells_.size(); ++i) {
    const Cell& c = cells_[i];
    std::fprintf(
        file, R"( {"op": "%s", "shape": "%s", "rows": %lld, "us": %.2f, "bytes": %.0f, "flops": %.0f, "roof": %.2f}%s)",
        c.op.c_str(), c.shape.c_str(), static_cast<long long>(c.rows), c.microseconds, c.bytes, c.flops, c.roof,
        i + 1 < cells_.size() ? ",\n" : "\n]\n");
  }
  return std::fclose(file) == 0;
}

testing::DeviceArray<std::byte> RandomBf16(std::int64_t bytes, float scale) {
  constexpr std::int64_t kBlock = std::int64_t{16} << 20;
  static const std::vector<float> kNormals = [] {
    std::vector<float> values(kBlock / 2);
    testing::Random random(1);
    for (float& value : values) value = random.Normal();
    return values;
  }();
  std::vector<std::uint16_t> block(kNormals.size());
  std::transform(kNormals.begin(), kNormals.end(), block.begin(), [&](float v) { return F32ToBf16(v * scale); });
  testing::DeviceArray<std::byte> array(bytes);
  for (std::int64_t done = 0; done < bytes;) {
    const std::int64_t part = done == 0 ? std::min(kBlock, bytes) : std::min(done, bytes - done);
    EXPERTD_CHECK_CUDA(done == 0 ? cudaMemcpy(array.data(), block.data(), part, cudaMemcpyHostToDevice)
                                 : cudaMemcpy(array.data() + done, array.data(), part, cudaMemcpyDeviceToDevice));
    done += part;
  }
  return array;
}

testing::DeviceArray<float> RandomRoutingWeights(std::int64_t slots) {
  testing::Random random(3);
  std::vector<float> weights(static_cast<std::size_t>(slots));
  for (float& weight : weights) weight = static_cast<float>(random.Uniform());
  return testing::DeviceArray<float>(weights);
}

}  // namespace expertd::bench
