#include "kernels/cpu/cpu_engine.h"

#include <sched.h>

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/host_memory.h"
#include "kernels/base/mutex.h"
#include "kernels/cpu/batch_runner.h"
#include "kernels/cpu/cpu_layer.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/row_pool.h"
#include "kernels/cpu/worker_pool.h"

namespace expertd {
namespace {

using cpu::BatchRunner;
using cpu::CpuLayer;
using cpu::HugeBuffer;
using cpu::Isa;

// To be raised with every change that may change a bit of a result.
constexpr int kNumericsVersion = 1;
constexpr int kMaxThreads = 1024;

int CoresOfThisProcess() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

const cpu::IsaKernels& KernelsOf(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return cpu::kAvx2Kernels;
    case Isa::kAvx512:
      return cpu::kAvx512Kernels;
    case Isa::kAvx512Bf16:
      return cpu::kAvx512Bf16Kernels;
    case Isa::kAmx:
      break;
  }
  return cpu::kAmxKernels;
}

class CpuEngine final : public Engine {
 public:
  CpuEngine(const CpuEngineOptions& options, Isa isa, int threads, HugeBuffer workspace)
      : isa_(isa),
        threads_(threads),
        workspace_bytes_(options.workspace_bytes),
        row_pool_(options.row_buffer_bytes),
        workers_(threads),
        runner_(KernelsOf(isa), workers_, std::move(workspace)) {
    info_.device = "cpu";
    info_.description = absl::StrCat(cpu::ProcessorName(), ", ", cpu::IsaName(isa), ", ", threads, " threads");
    info_.numerics_id = absl::StrCat("cpu-", cpu::IsaName(isa), "/", kNumericsVersion);
    info_.concurrency = 1;
    info_.max_batch_rows = options.max_batch_rows;
    info_.max_k = kMaxExpertsPerToken;
  }

  const EngineInfo& info() const override { return info_; }

  DeviceMemory memory() const override { return HostMemory(); }

  absl::StatusOr<LayerPtr> LoadLayer(const LayerSource& source) override {
    absl::StatusOr<std::shared_ptr<const CpuLayer>> layer = CpuLayer::Load(source, isa_, threads_, this);
    if (!layer.ok()) return layer.status();
    const std::int64_t needed = BatchRunner::MinimumWorkspace(**layer);
    if (needed > workspace_bytes_) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "workspace_bytes: ", workspace_bytes_, " do not hold one row of ", source.spec().Name(), " (", needed, ")"));
    }
    return LayerPtr(*std::move(layer));
  }

  absl::StatusOr<RowBuffer> AcquireRows(std::size_t bytes) override { return row_pool_.Acquire(bytes); }

  absl::Status Run(const Layer& layer, absl::Span<const Segment> segments, StageTimes* times) override {
    const auto* own = dynamic_cast<const CpuLayer*>(&layer);
    if (own == nullptr || own->owner() != this) {
      return absl::FailedPreconditionError(absl::StrCat("layer ", layer.spec().Name(), " is not this engine's"));
    }
    MutexLock lock(run_mutex_);
    if (times != nullptr) *times = {};
    runner_.Run(*own, segments, times);
    return absl::OkStatus();
  }

 private:
  // Set at construction.
  EngineInfo info_;
  const Isa isa_;
  const int threads_;
  const std::int64_t workspace_bytes_;

  // Self-synchronised.
  cpu::RowPool row_pool_;

  // Held during a batch.
  Mutex run_mutex_;
  cpu::WorkerPool workers_ ABSL_GUARDED_BY(run_mutex_);
  BatchRunner runner_ ABSL_GUARDED_BY(run_mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> MakeCpuEngine(const CpuEngineOptions& options) {
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return absl::InvalidArgumentError(absl::StrCat("threads: ", options.threads, " is outside 0..", kMaxThreads));
  }
  if (options.max_batch_rows < 1) {
    return absl::InvalidArgumentError(absl::StrCat("max_batch_rows: ", options.max_batch_rows, ", must be at least 1"));
  }
  if (options.workspace_bytes < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("workspace_bytes: ", options.workspace_bytes, ", must be at least 1"));
  }
  const absl::StatusOr<Isa> isa = cpu::ChooseIsa(options.isa);
  if (!isa.ok()) return isa.status();
  absl::StatusOr<HugeBuffer> workspace = HugeBuffer::Allocate(static_cast<std::size_t>(options.workspace_bytes));
  if (!workspace.ok()) return workspace.status();
  const int threads = options.threads > 0 ? options.threads : CoresOfThisProcess();
  return std::unique_ptr<Engine>(new CpuEngine(options, *isa, threads, *std::move(workspace)));
}

}  // namespace expertd
