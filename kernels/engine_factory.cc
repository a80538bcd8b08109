#include "kernels/engine_factory.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "kernels/cpu/cpu_engine.h"
#ifdef EXPERTD_WITH_CUDA
#include "kernels/cuda/engine/cuda_engine.h"
#endif

namespace expertd {
namespace {

absl::StatusOr<std::unique_ptr<Engine>> MakeCpu(const EngineOptions& options) {
  if (options.path != ExpertPath::kAuto) {
    return absl::InvalidArgumentError("path: the cpu engine has one of its own, only auto goes with device cpu");
  }
  CpuEngineOptions cpu;
  cpu.threads = options.threads;
  if (options.max_batch_rows != 0) cpu.max_batch_rows = options.max_batch_rows;
  if (options.row_buffer_bytes != 0) cpu.row_buffer_bytes = options.row_buffer_bytes;
  return MakeCpuEngine(cpu);
}

#ifdef EXPERTD_WITH_CUDA
absl::StatusOr<std::unique_ptr<Engine>> MakeCuda(int index, const EngineOptions& options) {
  CudaEngineOptions cuda;
  cuda.device = index;
  cuda.path = options.path;
  cuda.staging_bytes = options.staging_bytes;
  if (options.max_batch_rows != 0) cuda.max_batch_rows = options.max_batch_rows;
  if (options.row_buffer_bytes != 0) cuda.row_buffer_bytes = options.row_buffer_bytes;
  return MakeCudaEngine(cuda);
}
#else
absl::StatusOr<std::unique_ptr<Engine>> MakeCuda(int index, const EngineOptions&) {
  return absl::UnavailableError(
      absl::StrFormat("device: cuda:%d: this expertd was built without CUDA and has only cpu", index));
}
#endif

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> MakeEngine(absl::string_view device, const EngineOptions& options) {
  if (device == "cpu") return MakeCpu(options);
  absl::string_view index_text = device;
  int index = 0;
  if (absl::ConsumePrefix(&index_text, "cuda:") && absl::SimpleAtoi(index_text, &index) && index >= 0) {
    return MakeCuda(index, options);
  }
  return absl::InvalidArgumentError(absl::StrFormat("device: '%s' is neither cpu nor cuda:<index>", device));
}

}  // namespace expertd
