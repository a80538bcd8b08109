#include "kernels/cuda/engine/cuda_engine.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/mutex.h"
#include "kernels/cpu/row_pool.h"
#include "kernels/cuda/engine/batch_runner.h"
#include "kernels/cuda/engine/cuda_layer.h"
#include "kernels/cuda/engine/memory.h"
#include "kernels/cuda/engine/pinned_ranges.h"
#include "kernels/cuda/engine/staged_copies.h"
#include "kernels/cuda/engine/weight_upload.h"
#include "kernels/cuda/host.h"

namespace expertd {
namespace {

using cuda::BatchRunner;
using cuda::CudaLayer;
using cuda::Memory;
using cuda::MemoryKind;
using cuda::PinnedRanges;
using cuda::StagedCopies;

// To be raised with every change that may change a bit of a result.
constexpr int kNumericsVersion = 1;
constexpr int kBatchesInFlight = 2;  // one copies while the other computes
constexpr int kOldestMajor = 8;
// Half as many pass the bus in the time that ordering the copy and waiting for it takes.
constexpr std::int64_t kStageFromBytes = 512 << 10;

cpu::RowMemory PinnedRows(int device, std::shared_ptr<PinnedRanges> pinned) {
  return {.allocate = [device, pinned](std::size_t bytes) -> std::byte* {
            void* data = nullptr;
            if (cudaSetDevice(device) != cudaSuccess ||
                cudaHostAlloc(&data, bytes, cudaHostAllocPortable | cudaHostAllocMapped) != cudaSuccess) {
              cudaGetLastError();
              return nullptr;
            }
            pinned->Add(static_cast<std::byte*>(data), bytes);
            return static_cast<std::byte*>(data);
          },
          .free =
              [pinned](std::byte* data) {
                pinned->Remove(data);
                cudaFreeHost(data);
              }};
}

class CudaEngine final : public Engine {
 public:
  CudaEngine(const CudaEngineOptions& options, EngineInfo info, cuda::WeightUpload upload,
             std::shared_ptr<PinnedRanges> pinned, std::unique_ptr<StagedCopies> staged,
             std::vector<std::unique_ptr<BatchRunner>> runners)
      : info_(std::move(info)),
        device_(options.device),
        path_(options.path),
        pinned_(std::move(pinned)),
        row_pool_(options.row_buffer_bytes, PinnedRows(options.device, pinned_)),
        staged_(std::move(staged)),
        upload_(std::move(upload)),
        runners_(std::move(runners)) {
    for (const auto& runner : runners_) idle_.push_back(runner.get());
  }
  ~CudaEngine() override { (void)cuda::UseDevice(device_); }

  const EngineInfo& info() const override { return info_; }

  DeviceMemory memory() const override {
    std::size_t free = 0, total = 0;
    if (!Lost().ok() || cudaSetDevice(device_) != cudaSuccess || cudaMemGetInfo(&free, &total) != cudaSuccess)
      return {};
    return {.total_bytes = static_cast<std::int64_t>(total), .free_bytes = static_cast<std::int64_t>(free)};
  }

  std::int64_t graphs() const override {
    std::int64_t sum = 0;
    for (const auto& runner : runners_) sum += runner->graphs();
    return sum;
  }

  StagingTotals staging() const override {
    StagingTotals totals = {.bytes = staged_ == nullptr ? 0 : staged_->bytes_held()};
    for (const auto& runner : runners_) {
      totals.rows_on_arrival += runner->rows_on_arrival();
      totals.rows_with_batch += runner->rows_with_batch();
    }
    return totals;
  }

  absl::StatusOr<LayerPtr> LoadLayer(const LayerSource& source) override {
    if (absl::Status status = Lost(); !status.ok()) return status;
    if (absl::Status status = cuda::UseDevice(device_); !status.ok()) return status;
    MutexLock lock(load_mutex_);
    auto layer = CudaLayer::Load(source, device_, this, path_, upload_);
    if (!layer.ok()) return layer.status();
    if (absl::Status status = runners_.front()->CheckFits(**layer); !status.ok()) return status;
    return LayerPtr(*std::move(layer));
  }

  absl::StatusOr<RowBuffer> AcquireRows(std::size_t bytes) override { return row_pool_.Acquire(bytes); }

  std::shared_ptr<void> PinHostMemory(std::byte* data, std::size_t bytes) override {
    if (!Lost().ok() || !cuda::UseDevice(device_).ok()) return nullptr;
    if (cudaHostRegister(data, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped) != cudaSuccess) {
      cudaGetLastError();
      return nullptr;
    }
    pinned_->Add(data, bytes);
    // Whatever thread drops it has some other device current.
    return {data, [pinned = pinned_, device = device_](std::byte* range) {
              pinned->Remove(range);
              if (cuda::UseDevice(device).ok()) cudaHostUnregister(range);
            }};
  }

  absl::StatusOr<StagedRowsPtr> StageRows(std::shared_ptr<const RowBuffer> rows, std::size_t first,
                                          std::size_t bytes) override {
    if (staged_ == nullptr) return absl::UnimplementedError("staging_bytes: 0, this engine does not stage rows");
    if (!pinned_->Contains(rows->data() + first, bytes)) {
      return absl::FailedPreconditionError("rows: not page-locked by this engine");
    }
    if (absl::Status status = Lost(); !status.ok()) return status;
    if (absl::Status status = cuda::UseDevice(device_); !status.ok()) return status;
    return staged_->Copy(std::move(rows), first, static_cast<std::int64_t>(bytes));
  }

  absl::StatusOr<ExportedMemory> ExportMemory(std::size_t bytes) override {
    if (absl::Status status = Lost(); !status.ok()) return status;
    return cuda::Export(device_, bytes);
  }

  absl::Status Run(const Layer& layer, absl::Span<const Segment> segments, StageTimes* times) override {
    const auto* own = dynamic_cast<const CudaLayer*>(&layer);
    if (own == nullptr || own->owner() != this) {
      return absl::FailedPreconditionError(absl::StrCat("layer ", layer.spec().Name(), " is not this engine's"));
    }
    if (absl::Status status = Lost(); !status.ok()) return status;
    if (absl::Status status = cuda::UseDevice(device_); !status.ok()) return status;
    BatchRunner* const runner = TakeRunner();
    absl::Status status = runner->Run(*own, segments, times);
    if (!status.ok() && runner->DeviceLost()) status = Lose(status);
    ReturnRunner(runner);
    if (staged_ != nullptr) staged_->DropEnded();
    return status;
  }

 private:
  BatchRunner* TakeRunner() {
    MutexLock lock(mutex_);
    while (idle_.empty()) returned_.Wait(mutex_);
    BatchRunner* const runner = idle_.back();
    idle_.pop_back();
    return runner;
  }
  void ReturnRunner(BatchRunner* runner) {
    MutexLock lock(mutex_);
    idle_.push_back(runner);
    returned_.NotifyOne();
  }

  // After an error that CUDA repeats for ever, no call is made any more.
  absl::Status Lose(const absl::Status& error) {
    MutexLock lock(mutex_);
    if (lost_.ok()) lost_ = absl::InternalError(absl::StrCat(info_.device, " is lost: ", error.message()));
    return lost_;
  }
  absl::Status Lost() const {
    MutexLock lock(mutex_);
    return lost_;
  }

  // Set at construction.
  const EngineInfo info_;
  const int device_;
  const ExpertPath path_;

  // Self-synchronised.
  const std::shared_ptr<PinnedRanges> pinned_;  // the pool's buffers, which may outlive the engine, know it too
  cpu::RowPool row_pool_;
  const std::unique_ptr<StagedCopies> staged_;  // null: it does not stage

  // Held while a layer is loaded.
  Mutex load_mutex_;
  cuda::WeightUpload upload_ ABSL_GUARDED_BY(load_mutex_);

  const std::vector<std::unique_ptr<BatchRunner>> runners_;
  mutable Mutex mutex_;
  CondVar returned_;
  std::vector<BatchRunner*> idle_ ABSL_GUARDED_BY(mutex_);
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);
};

// What the device is, or why it cannot be used.
absl::StatusOr<cudaDeviceProp> Describe(int device) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    cudaGetLastError();
    return absl::UnavailableError(
        absl::StrCat("device: cuda:", device, ": no usable NVIDIA driver or device: ", cudaGetErrorString(error)));
  }
  if (device < 0 || device >= count) {
    return absl::UnavailableError(absl::StrCat("device: cuda:", device, ": this machine has ", count));
  }
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, device); error != cudaSuccess) {
    return absl::UnavailableError(absl::StrCat("device: cuda:", device, ": ", cudaGetErrorString(error)));
  }
  if (properties.major < kOldestMajor) {
    return absl::UnavailableError(absl::StrCat("device: cuda:", device, ": ", properties.name,
                                               " has compute capability ", properties.major, ".", properties.minor,
                                               ", must be at least ", kOldestMajor, ".0"));
  }
  return properties;
}

// As the driver's own tools print it.
std::string UuidOf(const cudaDeviceProp& device) {
  const std::string hex = absl::BytesToHexString(absl::string_view(device.uuid.bytes, sizeof(device.uuid.bytes)));
  const absl::string_view digits = hex;
  return absl::StrCat("GPU-", absl::StrJoin({digits.substr(0, 8), digits.substr(8, 4), digits.substr(12, 4),
                                             digits.substr(16, 4), digits.substr(20)},
                                            "-"));
}

// A library that is absent is a device that cannot be used, as callers see it.
absl::Status Unavailable(const absl::Status& status) {
  return absl::IsFailedPrecondition(status) ? absl::UnavailableError(status.message()) : status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> MakeCudaEngine(const CudaEngineOptions& options) {
  if (options.max_batch_rows < 1) {
    return absl::InvalidArgumentError(absl::StrCat("max_batch_rows: ", options.max_batch_rows, ", must be at least 1"));
  }
  if (options.staging_bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat("staging_bytes: ", options.staging_bytes, " is negative"));
  }
  if (options.workspace_bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat("workspace_bytes: ", options.workspace_bytes, " is negative"));
  }
  const absl::StatusOr<cudaDeviceProp> device = Describe(options.device);
  if (!device.ok()) return device.status();
  if (options.path == ExpertPath::kFp8Rows && device->major != 9) {
    return absl::UnavailableError(absl::StrCat("path: fp8-rows: cuda:", options.device, ": ", device->name,
                                               " has compute capability ", device->major, ".", device->minor,
                                               ", must be 9.0"));
  }
  if (absl::Status status = cuda::UseDevice(options.device); !status.ok()) return status;
  const std::int64_t workspace = options.workspace_bytes > 0
                                     ? options.workspace_bytes
                                     : std::min<std::int64_t>(device->totalGlobalMem / 16, 4LL << 30);
  auto pinned = std::make_shared<PinnedRanges>();
  std::vector<std::unique_ptr<BatchRunner>> runners;
  for (int i = 0; i < kBatchesInFlight; ++i) {
    auto runner =
        BatchRunner::Create(options.max_batch_rows, workspace / kBatchesInFlight / 256 * 256, options.path, *pinned);
    if (!runner.ok()) return Unavailable(runner.status());
    runners.push_back(*std::move(runner));
  }
  std::unique_ptr<StagedCopies> staged;
  if (options.staging_bytes > 0) {
    absl::StatusOr<std::unique_ptr<StagedCopies>> made = StagedCopies::Create(options.staging_bytes);
    if (!made.ok()) return made.status();
    staged = *std::move(made);
  }
  absl::StatusOr<cuda::WeightUpload> upload = cuda::WeightUpload::Create();
  if (!upload.ok()) return upload.status();
  EngineInfo info;
  info.device = absl::StrCat("cuda:", options.device);
  info.description = absl::StrCat(device->name, ", ", device->totalGlobalMem >> 20, " MiB, compute capability ",
                                  device->major, ".", device->minor);
  info.numerics_id = absl::StrCat("cuda-sm", device->major, device->minor, "/", kNumericsVersion,
                                  options.path == ExpertPath::kBatched   ? "/batched-not-invariant"
                                  : options.path == ExpertPath::kFp8Rows ? "/fp8-rows"
                                                                         : "");
  info.concurrency = kBatchesInFlight;
  info.max_batch_rows = options.max_batch_rows;
  info.max_k = kMaxExpertsPerToken;
  info.device_uuid = UuidOf(*device);
  info.stage_from_bytes = staged == nullptr ? 0 : kStageFromBytes;
  return std::unique_ptr<Engine>(new CudaEngine(options, std::move(info), *std::move(upload), std::move(pinned),
                                                std::move(staged), std::move(runners)));
}

}  // namespace expertd
