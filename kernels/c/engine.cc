// Engines, layers and batches behind the C ABI.
#include "kernels/engine.h"

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/mutex.h"
#include "kernels/c/expertd.h"
#include "kernels/c/status.h"
#include "kernels/checkpoint/checkpoint.h"
#include "kernels/engine_factory.h"
#include "kernels/routing_check.h"

namespace expertd::c {
namespace {

// An engine that any number of threads may call: it runs as many batches at once as it says it can, others wait.
class SharedEngine {
 public:
  explicit SharedEngine(std::unique_ptr<Engine> engine)
      : engine_(std::move(engine)), free_(engine_->info().concurrency) {}

  Engine& engine() const { return *engine_; }

  absl::Status Run(const Layer& layer, absl::Span<const Segment> segments, StageTimes* times) {
    {
      MutexLock lock(mutex_);
      while (free_ == 0) freed_.Wait(mutex_);
      --free_;
    }
    absl::Status status = engine_->Run(layer, segments, times);
    MutexLock lock(mutex_);
    ++free_;
    freed_.NotifyOne();
    return status;
  }

 private:
  const std::unique_ptr<Engine> engine_;
  Mutex mutex_;
  CondVar freed_;
  int free_ ABSL_GUARDED_BY(mutex_);
};
using SharedEnginePtr = std::shared_ptr<SharedEngine>;

struct Pointer {
  const char* name;
  const void* value;
};
absl::Status NotNull(std::initializer_list<Pointer> pointers) {
  for (const Pointer& pointer : pointers) {
    if (pointer.value == nullptr) return absl::InvalidArgumentError(absl::StrCat(pointer.name, ": is null"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const char* dir) {
  if (absl::Status status = NotNull({{"dir", dir}}); !status.ok()) return status;
  return Checkpoint::Open(dir);
}

absl::StatusOr<DType> RowType(absl::string_view field, std::int32_t dtype) {
  if (dtype == EXPERTD_BF16) return DType::kBF16;
  if (dtype == EXPERTD_F32) return DType::kF32;
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", dtype, " is not an expertd_dtype"));
}

absl::StatusOr<Segment> CheckedSegment(const expertd_segment& in, const LayerSpec& spec, const EngineInfo& info) {
  constexpr std::int64_t kMaxSlots = (std::int64_t{1} << 31) - 1;
  const absl::StatusOr<DType> input = RowType("input_dtype", in.input_dtype),
                              output = RowType("output_dtype", in.output_dtype);
  if (!input.ok()) return input.status();
  if (!output.ok()) return output.status();
  if (in.k < 0 || in.k > info.max_k) {
    return absl::InvalidArgumentError(absl::StrCat("k: ", in.k, " is outside 0..", info.max_k));
  }
  const std::int64_t max_rows = kMaxSlots / std::max<std::int64_t>(in.k, spec.experts_per_token);
  if (in.rows < 0 || in.rows > max_rows) {
    return absl::InvalidArgumentError(absl::StrCat("rows: ", in.rows, " is outside 0..", max_rows));
  }
  const bool routes = in.k == 0;
  if (!routes && (in.routed_ids != nullptr || in.routed_weights != nullptr)) {
    return absl::InvalidArgumentError(absl::StrCat("routed_ids, routed_weights: no router runs with k=", in.k));
  }
  if (in.rows > 0) {
    absl::Status status = NotNull({{"input", in.input}, {"output", in.output}});
    if (status.ok() && !routes) status = NotNull({{"topk_ids", in.topk_ids}, {"topk_weights", in.topk_weights}});
    if (status.ok() && !routes) status = CheckRouting(in.topk_ids, in.topk_weights, in.rows, in.k, spec);
    if (!status.ok()) return status;
  }
  return Segment{.rows = in.rows,
                 .input = in.input,
                 .output = in.output,
                 .input_dtype = *input,
                 .output_dtype = *output,
                 .shared_expert = in.no_shared == 0,
                 .k = in.k,
                 .topk_ids = in.topk_ids,
                 .topk_weights = in.topk_weights,
                 .routed_ids = in.routed_ids,
                 .routed_weights = in.routed_weights};
}

}  // namespace
}  // namespace expertd::c

// A layer or a buffer keeps its engine, so that handles may go in any order.
struct expertd_engine {
  expertd::c::SharedEnginePtr engine;
};
struct expertd_layer {
  expertd::c::SharedEnginePtr engine;
  expertd::LayerPtr layer;
  std::string name, path;
};
struct expertd_rows {
  expertd::c::SharedEnginePtr engine;
  expertd::RowBuffer buffer;
};

using expertd::c::Guarded;
using expertd::c::NotNull;

expertd_status expertd_checkpoint_layers(const char* dir, int64_t* layers, size_t capacity, size_t* count) {
  return Guarded([&]() -> absl::Status {
    if (auto status = NotNull({{"count", count}}); !status.ok()) return status;
    if (auto status = capacity > 0 ? NotNull({{"layers", layers}}) : absl::OkStatus(); !status.ok()) return status;
    const auto checkpoint = expertd::c::OpenCheckpoint(dir);
    if (!checkpoint.ok()) return checkpoint.status();
    const std::vector<expertd::LayerSpec>& specs = (*checkpoint)->layers();
    for (std::size_t i = 0; i < std::min(capacity, specs.size()); ++i) layers[i] = specs[i].layer;
    *count = specs.size();
    return absl::OkStatus();
  });
}

expertd_status expertd_engine_create(const char* device, const expertd_engine_options* options,
                                     expertd_engine** engine) {
  return Guarded([&]() -> absl::Status {
    if (auto status = NotNull({{"device", device}, {"engine", engine}}); !status.ok()) return status;
    const expertd_engine_options given = options == nullptr ? expertd_engine_options{} : *options;
    for (const auto& [name, value] : {std::pair<const char*, int64_t>{"threads", given.threads},
                                      {"max_batch_rows", given.max_batch_rows},
                                      {"row_buffer_bytes", given.row_buffer_bytes}}) {
      if (value < 0) return absl::InvalidArgumentError(absl::StrCat(name, ": ", value, " is negative"));
    }
    const auto path = expertd::ParseExpertPath(given.path == nullptr ? "" : given.path);
    if (!path.ok()) return path.status();
    auto made = expertd::MakeEngine(device, {.threads = given.threads,
                                             .max_batch_rows = given.max_batch_rows,
                                             .row_buffer_bytes = given.row_buffer_bytes,
                                             .path = *path});
    if (!made.ok()) return made.status();
    *engine = new expertd_engine{std::make_shared<expertd::c::SharedEngine>(*std::move(made))};
    return absl::OkStatus();
  });
}
void expertd_engine_destroy(expertd_engine* engine) { delete engine; }

expertd_status expertd_engine_describe(const expertd_engine* engine, expertd_engine_info* info) {
  return Guarded([&]() -> absl::Status {
    if (auto status = NotNull({{"engine", engine}, {"info", info}}); !status.ok()) return status;
    const expertd::EngineInfo& from = engine->engine->engine().info();
    *info = {.device = from.device.c_str(),
             .description = from.description.c_str(),
             .numerics_id = from.numerics_id.c_str(),
             .concurrency = from.concurrency,
             .max_batch_rows = from.max_batch_rows,
             .max_k = from.max_k};
    return absl::OkStatus();
  });
}

expertd_status expertd_layer_load(expertd_engine* engine, const char* dir, int64_t index, expertd_layer** layer) {
  return Guarded([&]() -> absl::Status {
    if (auto status = NotNull({{"engine", engine}, {"layer", layer}}); !status.ok()) return status;
    const auto checkpoint = expertd::c::OpenCheckpoint(dir);
    if (!checkpoint.ok()) return checkpoint.status();
    const auto source = (*checkpoint)->OpenLayer(index);
    if (!source.ok()) return source.status();
    auto loaded = engine->engine->engine().LoadLayer(**source);
    if (!loaded.ok()) return loaded.status();
    std::string name = (*loaded)->spec().Name(), path((*loaded)->path());
    *layer = new expertd_layer{engine->engine, *std::move(loaded), std::move(name), std::move(path)};
    return absl::OkStatus();
  });
}
void expertd_layer_unload(expertd_layer* layer) { delete layer; }

expertd_status expertd_layer_describe(const expertd_layer* layer, expertd_layer_info* info) {
  return Guarded([&]() -> absl::Status {
    if (auto status = NotNull({{"layer", layer}, {"info", info}}); !status.ok()) return status;
    const expertd::LayerSpec& spec = layer->layer->spec();
    *info = {.name = layer->name.c_str(),
             .fingerprint = layer->layer->fingerprint().c_str(),
             .path = layer->path.c_str(),
             .hidden_size = spec.hidden_size,
             .num_experts = spec.num_experts,
             .experts_per_token = spec.experts_per_token,
             .intermediate_size = spec.intermediate_size,
             .shared_intermediate_size = spec.shared_intermediate_size,
             .weight_bytes = layer->layer->weight_bytes()};
    return absl::OkStatus();
  });
}

expertd_status expertd_rows_acquire(expertd_engine* engine, size_t bytes, expertd_rows** rows) {
  return Guarded([&]() -> absl::Status {
    if (auto status = NotNull({{"engine", engine}, {"rows", rows}}); !status.ok()) return status;
    if (bytes == 0) return absl::InvalidArgumentError("bytes: 0, must be at least 1");
    auto buffer = engine->engine->engine().AcquireRows(bytes);
    if (!buffer.ok()) return buffer.status();
    *rows = new expertd_rows{engine->engine, *std::move(buffer)};
    return absl::OkStatus();
  });
}
void* expertd_rows_data(const expertd_rows* rows) { return rows->buffer.data(); }
void expertd_rows_release(expertd_rows* rows) { delete rows; }

expertd_status expertd_run(const expertd_layer* layer, const expertd_segment* segments, size_t count,
                           expertd_stage_times* times) {
  return Guarded([&]() -> absl::Status {
    if (auto status = NotNull({{"layer", layer}}); !status.ok()) return status;
    if (auto status = count > 0 ? NotNull({{"segments", segments}}) : absl::OkStatus(); !status.ok()) return status;
    std::vector<expertd::Segment> batch;
    batch.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      auto segment = expertd::c::CheckedSegment(segments[i], layer->layer->spec(), layer->engine->engine().info());
      if (!segment.ok()) {
        return absl::Status(segment.status().code(), absl::StrCat("segments[", i, "].", segment.status().message()));
      }
      batch.push_back(*segment);
    }
    expertd::StageTimes spent;
    if (auto status = layer->engine->Run(*layer->layer, batch, &spent); !status.ok()) return status;
    if (times != nullptr) *times = {spent.stage_in, spent.route, spent.gemm, spent.combine, spent.stage_out};
    return absl::OkStatus();
  });
}
