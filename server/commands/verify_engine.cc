// The subject that is an engine of this process.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/engine.h"
#include "kernels/engine_factory.h"
#include "server/commands/verify_subject.h"

namespace expertd {
namespace {

class EngineSubject final : public VerifySubject {
 public:
  EngineSubject(Engine& engine, LayerPtr layer) : engine_(engine), layer_(std::move(layer)) {}

  const std::string& fingerprint() const override { return layer_->fingerprint(); }
  std::string path() const override { return std::string(layer_->path()); }

  absl::StatusOr<reference::Answer> Run(const reference::LayerRows& rows, DType dtype) override {
    reference::Answer answer;
    for (std::int64_t first = 0; first < rows.n; first += engine_.info().max_batch_rows) {
      const std::int64_t count = std::min(engine_.info().max_batch_rows, rows.n - first);
      if (absl::Status status = RunSome(rows, first, count, dtype, answer); !status.ok()) return status;
    }
    return answer;
  }

 private:
  absl::Status RunSome(const reference::LayerRows& rows, std::int64_t first, std::int64_t count, DType dtype,
                       reference::Answer& answer) {
    const LayerSpec& spec = layer_->spec();
    const std::int64_t elements = count * spec.hidden_size;
    auto input = engine_.AcquireRows(static_cast<std::size_t>(BytesOf(dtype, elements)));
    auto output = engine_.AcquireRows(static_cast<std::size_t>(BytesOf(DType::kF32, elements)));
    for (const auto* buffer : {&input, &output}) {
      if (!buffer->ok()) return buffer->status();
    }
    const double* const values = &rows.rows[first * spec.hidden_size];
    for (std::int64_t i = 0; i < elements; ++i) {
      const auto value = static_cast<float>(values[i]);
      if (dtype == DType::kF32) {
        reinterpret_cast<float*>(input->data())[i] = value;
      } else {
        reinterpret_cast<std::uint16_t*>(input->data())[i] = F32ToBf16(value);
      }
    }
    // NaN where nothing is written.
    std::memset(output->data(), 0xff, output->size());
    std::vector<std::int32_t> ids(rows.k == 0 ? count * spec.experts_per_token : 0);
    std::vector<float> routed(ids.size());
    const std::vector<float> weights(rows.topk_weights.begin(), rows.topk_weights.end());
    Segment segment{.rows = count,
                    .input = input->data(),
                    .output = output->data(),
                    .input_dtype = dtype,
                    .output_dtype = DType::kF32,
                    .shared_expert = rows.shared_expert};
    if (rows.k == 0) {
      segment.routed_ids = ids.data();
      segment.routed_weights = routed.data();
    } else {
      segment.k = rows.k;
      segment.topk_ids = &rows.topk_ids[first * rows.k];
      segment.topk_weights = &weights[first * rows.k];
    }
    StageTimes times;
    if (absl::Status status = engine_.Run(*layer_, {&segment, 1}, &times); !status.ok()) return status;
    const auto* const results = reinterpret_cast<const float*>(output->data());
    answer.output.insert(answer.output.end(), results, results + elements);
    answer.topk_ids.insert(answer.topk_ids.end(), ids.begin(), ids.end());
    answer.topk_weights.insert(answer.topk_weights.end(), routed.begin(), routed.end());
    return absl::OkStatus();
  }

  Engine& engine_;
  const LayerPtr layer_;
};

class EngineSubjects final : public VerifySubjects {
 public:
  EngineSubjects(std::unique_ptr<Engine> engine, std::vector<SubjectLayer> layers)
      : engine_(std::move(engine)), layers_(std::move(layers)) {}

  std::string description() const override { return engine_->info().device + ": " + engine_->info().description; }
  std::vector<SubjectLayer> layers() const override { return layers_; }

  absl::StatusOr<std::unique_ptr<VerifySubject>> Open(std::int64_t, const LayerSource* source) override {
    auto layer = engine_->LoadLayer(*source);
    if (!layer.ok()) return layer.status();
    return std::make_unique<EngineSubject>(*engine_, *std::move(layer));
  }

 private:
  const std::unique_ptr<Engine> engine_;
  const std::vector<SubjectLayer> layers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<VerifySubjects>> MakeEngineSubjects(const std::string& device, const std::string& path,
                                                                   std::vector<SubjectLayer> layers) {
  const absl::StatusOr<ExpertPath> expert_path = ParseExpertPath(path);
  if (!expert_path.ok()) return expert_path.status();
  auto engine = MakeEngine(device, {.path = *expert_path});
  if (!engine.ok()) return engine.status();
  return std::make_unique<EngineSubjects>(*std::move(engine), std::move(layers));
}

}  // namespace expertd
