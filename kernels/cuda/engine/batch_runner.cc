#include "kernels/cuda/engine/batch_runner.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/engine/expert_chain.h"
#include "kernels/cuda/engine/expert_rows.h"
#include "kernels/cuda/engine/router_gemm.h"
#include "kernels/cuda/enqueue.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/row_ops.h"

namespace expertd::cuda {
namespace {

constexpr std::int64_t kStagingBytes = 16LL << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<BatchRunner>> BatchRunner::Create(std::int64_t max_rows, std::int64_t workspace_bytes,
                                                                 ExpertPath path, const PinnedRanges& pinned) {
  std::unique_ptr<BatchRunner> runner(new BatchRunner(pinned));
  if (path == ExpertPath::kBatched) {
    workspace_bytes /= 2;
    auto batched = BatchedExperts::Create(workspace_bytes);
    if (!batched.ok()) return batched.status();
    runner->batched_ = *std::move(batched);
  }
  runner->limits_ = {.rows = max_rows, .workspace_bytes = workspace_bytes, .staging_bytes = kStagingBytes};
  auto stream = OwnedStream::Create();
  if (!stream.ok()) return stream.status();
  runner->stream_ = *std::move(stream);
  auto staging = ChunkStaging::Create(kStagingBytes);
  if (!staging.ok()) return staging.status();
  runner->staging_ = *std::move(staging);
  const auto allocate = [](Memory& memory, MemoryKind kind, std::int64_t bytes, absl::string_view what) {
    auto allocated = Memory::Allocate(kind, bytes, what);
    if (allocated.ok()) memory = *std::move(allocated);
    return allocated.status();
  };
  absl::Status status = allocate(runner->workspace_, MemoryKind::kDevice, workspace_bytes, "workspace");
  if (status.ok()) status = allocate(runner->stamps_, MemoryKind::kPinned, 4 * sizeof(std::uint64_t), "time stamps");
  if (!status.ok()) return status;
  for (OwnedEvent& mark : runner->marks_) {
    auto event = OwnedEvent::Create();
    if (!event.ok()) return event.status();
    mark = *std::move(event);
  }
  return runner;
}

const BatchRunner::Step BatchRunner::kComputing[3] = {&BatchRunner::Route, &BatchRunner::RunExperts,
                                                      &BatchRunner::Combine};

absl::Status BatchRunner::CheckFits(const CudaLayer& layer) const {
  for (const std::int64_t k : {std::int64_t{0}, kMaxExpertsPerToken}) {
    const Segment row = {.rows = 1, .input_dtype = DType::kF32, .output_dtype = DType::kF32, .k = k};
    const absl::Status status = ForEachChunk(
        layer, {&row, 1}, DType::kF32, limits_, [](const Segment&) { return false; },
        [](const Chunk&) { return absl::OkStatus(); });
    if (!status.ok()) return status;
  }
  return batched_ == nullptr ? absl::OkStatus() : batched_->CheckFits(layer.spec(), layer.experts());
}

bool BatchRunner::DeviceLost() const {
  const cudaError_t state = cudaStreamQuery(static_cast<cudaStream_t>(stream_.get()));
  return state != cudaSuccess && state != cudaErrorNotReady;
}

absl::Status BatchRunner::Run(const CudaLayer& layer, absl::Span<const Segment> segments, StageTimes* times) {
  StageTimes unused;
  StageTimes& sums = times == nullptr ? unused : *times;
  sums = {};
  const std::int64_t d = layer.spec().hidden_size;
  const auto in_reach = [&](const Segment& segment) {
    return segment.on_device || (Aligned16({segment.input, segment.output}) &&
                                 pinned_.Contains(segment.input, BytesOf(segment.input_dtype, segment.rows * d)) &&
                                 pinned_.Contains(segment.output, BytesOf(segment.output_dtype, segment.rows * d)));
  };
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const absl::Status status = ForEachChunk(layer, segments, dtype, limits_, in_reach,
                                             [&](const Chunk& chunk) { return RunChunk(layer, chunk, sums); });
    if (status.ok()) continue;
    (void)WaitFor(stream_.get());  // nothing touches the caller's rows any more
    return status;
  }
  return absl::OkStatus();
}

absl::Status BatchRunner::RunChunk(const CudaLayer& layer, const Chunk& chunk, StageTimes& times) {
  const auto began = std::chrono::steady_clock::now();
  Scratch scratch(workspace_.data());
  const ChunkMemory memory = PlaceChunk(layer, chunk, scratch);
  staging_.FillTables(layer, chunk, memory);
  if (absl::Status status = ChunkStaging::AwaitCopies(chunk, stream()); !status.ok()) return status;
  const absl::StatusOr<Seconds> seconds = chunk.recorded ? Replay(layer, chunk, memory) : Enqueue(layer, chunk, memory);
  if (!seconds.ok()) return seconds.status();
  staging_.Answer(layer, chunk);
  for (const Piece& piece : chunk.pieces) {
    if (!piece.segment->on_device) (piece.copy != nullptr ? rows_on_arrival_ : rows_with_batch_) += piece.rows;
  }
  const std::chrono::duration<double> all = std::chrono::steady_clock::now() - began;
  // What the device did not stamp is the way there and back.
  const auto [route, gemm, combine, stage_out] = *seconds;
  times.route += route;
  times.gemm += gemm;
  times.combine += combine;
  times.stage_out += stage_out;
  times.stage_in += all.count() - route - gemm - combine - stage_out;
  return absl::OkStatus();
}

// Copies, kernels, copies.
absl::StatusOr<BatchRunner::Seconds> BatchRunner::Enqueue(const CudaLayer& layer, const Chunk& chunk,
                                                          const ChunkMemory& memory) {
  std::size_t mark = 0;
  absl::Status status = staging_.CopyIn(layer, chunk, memory, stream());
  if (status.ok()) status = marks_[mark++].Record(stream_.get());
  for (const Step step : kComputing) {
    if (status.ok()) status = (this->*step)(layer, chunk, memory);
    if (status.ok()) status = marks_[mark++].Record(stream_.get());
  }
  if (status.ok()) status = staging_.CopyOut(layer, chunk, memory, stream());
  if (status.ok()) status = marks_[mark].Record(stream_.get());
  if (status.ok()) status = marks_[mark].Wait();
  Seconds seconds;
  for (std::size_t i = 0; i < seconds.size() && status.ok(); ++i) {
    const absl::StatusOr<double> stage = OwnedEvent::Seconds(marks_[i], marks_[i + 1]);
    status = stage.status();
    if (status.ok()) seconds[i] = *stage;
  }
  if (!status.ok()) return status;
  return seconds;
}

// One graph, in which kernels do the copies' work, too.
absl::StatusOr<BatchRunner::Seconds> BatchRunner::Replay(const CudaLayer& layer, const Chunk& chunk,
                                                         const ChunkMemory& memory) {
  auto* const stamps = reinterpret_cast<std::uint64_t*>(stamps_.data());
  const auto enqueue = [&] {
    std::uint64_t* stamp = stamps;
    absl::Status status = staging_.FetchRows(layer, chunk, memory, stream());
    if (status.ok()) status = FromCuda(LaunchStamp(stamp++, stream_.get()), "stamp");
    for (const Step step : kComputing) {
      if (status.ok()) status = (this->*step)(layer, chunk, memory);
      if (status.ok()) status = FromCuda(LaunchStamp(stamp++, stream_.get()), "stamp");
    }
    return status;
  };
  absl::Status status = graphs_.Run({.layer = layer.id(),
                                     .dtype = chunk.dtype,
                                     .n = chunk.n,
                                     .routed_rows = chunk.routed_rows,
                                     .shared_rows = chunk.shared_rows,
                                     .kc = chunk.kc},
                                    stream(), enqueue);
  if (status.ok()) status = staging_.CopyRouting(chunk, memory, stream());
  if (status.ok()) status = WaitFor(stream_.get());
  if (!status.ok()) return status;
  Seconds seconds = {};
  for (std::size_t i = 0; i < std::size(kComputing); ++i) {
    seconds[i] = 1e-9 * static_cast<double>(stamps[i + 1] - stamps[i]);
  }
  return seconds;
}

absl::Status BatchRunner::Route(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory) {
  const LayerSpec& spec = layer.spec();
  RouterGemmLaunch product = {.n = chunk.routed_rows,
                              .e = spec.num_experts,
                              .d = spec.hidden_size,
                              .element = ElementOf(chunk.dtype),
                              .x = memory.x,
                              .w = layer.router(),
                              .bias = layer.router_bias(),
                              .partial = memory.partial,
                              .out = memory.logits};
  if (chunk.routed_rows > 0) {
    absl::Status status = FromCuda(LaunchRouterGemm(product, stream_.get()), "router");
    if (status.ok()) {
      status = FusedTopkRouting({.n = chunk.routed_rows,
                                 .e = spec.num_experts,
                                 .k = spec.experts_per_token,
                                 .rule = spec.routing,
                                 .logits = memory.logits,
                                 .correction_bias = layer.correction_bias(),
                                 .weights = memory.routing.weights,
                                 .ids = memory.routing.ids},
                                stream());
    }
    if (!status.ok()) return status;
  }
  if (chunk.shared_rows > 0 && layer.shared_gate() != nullptr) {
    product.n = chunk.n;
    product.e = 1;
    product.w = layer.shared_gate();
    product.bias = nullptr;
    product.out = memory.shared_gate;
    if (auto status = FromCuda(LaunchRouterGemm(product, stream_.get()), "shared gate"); !status.ok()) return status;
  }
  return FillSlots(layer, chunk, memory);
}

absl::Status BatchRunner::FillSlots(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory) {
  const LayerSpec& spec = layer.spec();
  const FillSlotsLaunch fill = {.n = chunk.n,
                                .routed_rows = chunk.routed_rows,
                                .k = spec.experts_per_token,
                                .kc = chunk.kc,
                                .routed_ids = memory.routing.ids,
                                .routed_weights = memory.routing.weights,
                                .given_ids = memory.control.given_ids,
                                .given_weights = memory.control.given_weights,
                                .live = memory.control.live,
                                .first_expert = spec.first_expert,
                                .held_experts = spec.held_experts,
                                .ids = memory.ids,
                                .weights = memory.weights,
                                .cleared = memory.counters,
                                .cleared_count = memory.counter_count};
  return FromCuda(LaunchFillSlots(fill, stream_.get()), "slots");
}

absl::Status BatchRunner::Sort(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory) {
  if (layer.spec().held_experts > 0) return FromCuda(LaunchExpertSort(memory.sort, stream_.get()), "sort");
  return FromCuda(cudaMemsetAsync(memory.sort.positions, 0xff, static_cast<std::size_t>(chunk.slots()) * 4,
                                  static_cast<cudaStream_t>(stream_.get())),
                  "sort");
}

absl::Status BatchRunner::RunExperts(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory) {
  const DeviceExperts& experts = layer.experts();
  absl::Status status = Sort(layer, chunk, memory);  // nothing between: the fused kernel starts while it runs
  if (status.ok()) status = RunShared(layer, chunk, memory);
  if (!status.ok() || experts.count == 0) return status;
  const ExpertWork work = {.spec = layer.spec(),
                           .experts = experts,
                           .chain = memory.experts,
                           .dtype = chunk.dtype,
                           .n = chunk.n,
                           .k = chunk.kc,
                           .positions = chunk.slots(),
                           .x = memory.x,
                           .on_input = layer.spec().routing.weight_on_input ? memory.weights : nullptr,
                           .ids = memory.ids,
                           .sorted_slots = memory.sort.sorted_slots,
                           .offsets = memory.sort.offsets};
  if (!layer.batched() || !BatchedExperts::Multiplies(experts, chunk.dtype)) return RunChain(work, stream());
  status = SpreadChainRows(work, stream());
  return status.ok() ? RunBatched(layer, chunk, memory) : status;
}

absl::Status BatchRunner::RunBatched(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory) {
  const bool on_input = layer.spec().routing.weight_on_input;
  return batched_->Run({.spec = layer.spec(),
                        .experts = layer.experts(),
                        .dtype = chunk.dtype,
                        .x = on_input ? memory.experts.spread : memory.x,
                        .rows_divisor = on_input ? 1 : chunk.kc,
                        .sorted_slots = memory.sort.sorted_slots,
                        .offsets = memory.sort.offsets,
                        .out = memory.experts.out},
                       stream());
}

// The shared expert is one more expert, whose positions are the rows that want it.
absl::Status BatchRunner::RunShared(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory) {
  if (chunk.shared_rows == 0) return absl::OkStatus();
  return RunChain({.spec = layer.spec(),
                   .experts = layer.shared(),
                   .chain = memory.shared,
                   .dtype = chunk.dtype,
                   .n = chunk.n,
                   .positions = chunk.shared_rows,
                   .x = memory.x,
                   .sorted_slots = memory.control.shared_list,
                   .offsets = memory.control.shared_offsets},
                  stream());
}

absl::Status BatchRunner::Combine(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory) {
  const CombineRowsLaunch launch = {.n = chunk.n,
                                    .d = layer.spec().hidden_size,
                                    .kc = chunk.kc,
                                    .element = ElementOf(chunk.dtype),
                                    .expert_out = memory.experts.out,
                                    .positions = memory.sort.positions,
                                    .ids = memory.ids,
                                    .weights = layer.spec().routing.weight_on_input ? nullptr : memory.weights,
                                    .down_bias = reinterpret_cast<const float*>(layer.experts().down.bias),
                                    .shared_out = memory.shared.out,
                                    .shared_row = chunk.shared_rows > 0 ? memory.control.shared_row : nullptr,
                                    .shared_gate = layer.shared_gate() == nullptr ? nullptr : memory.shared_gate,
                                    .out_row = memory.control.out_row};
  return FromCuda(LaunchCombineRows(launch, stream_.get()), "combine");
}

}  // namespace expertd::cuda
