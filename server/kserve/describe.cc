#include "server/kserve/describe.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "server/kserve/infer_request.h"

namespace expertd::kserve {
namespace {

constexpr char kPlatform[] = "expertd_moe_layer";

// Both tensors of a layer that every request has, [rows, hidden size]. They may be BF16 too: there is room for one
// datatype, and FP32 is the one that every client can make up values for. The optional inputs are no part of this,
// because load testers make up values for whatever they find, and random ids are none; the configuration's parameters
// name them.
constexpr char kInput[] = "hidden_states";
constexpr char kOutput[] = "output";
constexpr char kOptionalInputs[] = "topk_ids INT32 [rows, k], topk_weights FP32 [rows, k]";

void DescribeTensor(const char* name, const LayerSpec& spec, inference::ModelMetadataResponse::TensorMetadata* out) {
  out->set_name(name);
  out->set_datatype("FP32");
  out->add_shape(-1);
  out->add_shape(spec.hidden_size);
}

// `Tensor` is ModelInput or ModelOutput; the batch dimension is left out, as the configuration has it.
template <class Tensor>
void DescribeConfigTensor(const char* name, const LayerSpec& spec, Tensor* out) {
  out->set_name(name);
  out->set_data_type(inference::TYPE_FP32);
  out->add_dims(spec.hidden_size);
}

void Set(inference::StatisticDuration* out, std::int64_t count, double seconds) {
  out->set_count(static_cast<std::uint64_t>(count));
  out->set_ns(static_cast<std::uint64_t>(seconds * 1e9));
}

}  // namespace

void DescribeServer(absl::string_view version, bool shared_memory, inference::ServerMetadataResponse* out) {
  out->set_name("expertd");
  out->set_version(std::string(version));
  for (const char* extension : {"model_configuration", "statistics", "schedule_policy", "parameters"}) {
    out->add_extensions(extension);
  }
  if (shared_memory) out->add_extensions("system_shared_memory");
}

void DescribeModel(const LayerSpec& spec, inference::ModelMetadataResponse* out) {
  out->set_name(spec.Name());
  out->add_versions(std::string(kModelVersion));
  out->set_platform(kPlatform);
  DescribeTensor(kInput, spec, out->add_inputs());
  DescribeTensor(kOutput, spec, out->add_outputs());
}

void DescribeConfig(const LayerTable::Row& row, std::int64_t max_rows, inference::ModelConfig* out) {
  const LayerSpec& spec = row.spec;
  out->set_name(spec.Name());
  out->set_platform(kPlatform);
  out->set_backend("expertd");
  out->set_max_batch_size(static_cast<std::int32_t>(max_rows));
  out->mutable_dynamic_batching();
  DescribeConfigTensor(kInput, spec, out->add_input());
  DescribeConfigTensor(kOutput, spec, out->add_output());
  const std::pair<const char*, std::string> facts[] = {
      {"optional_inputs", kOptionalInputs},
      {"family", spec.family},
      {"routing", spec.RoutingInWords()},
      {"num_experts", absl::StrCat(spec.num_experts)},
      {"experts_per_token", absl::StrCat(spec.experts_per_token)},
      {"weight_dtype", std::string(WeightFormatName(spec.expert_format))},
      {"fingerprint", row.layer == nullptr ? std::string() : row.layer->fingerprint()},
  };
  for (const auto& [name, value] : facts) (*out->mutable_parameters())[name].set_string_value(value);
}

void DescribeStatistics(const LayerSpec& spec, const LayerTotals& totals, inference::ModelStatistics* out) {
  out->set_name(spec.Name());
  out->set_version(std::string(kModelVersion));
  out->set_last_inference(static_cast<std::uint64_t>(totals.last_answer_ms));
  out->set_inference_count(static_cast<std::uint64_t>(totals.rows));
  out->set_execution_count(static_cast<std::uint64_t>(totals.batches));
  inference::InferStatistics& stats = *out->mutable_inference_stats();
  const RequestTimes& sum = totals.answered_seconds;
  Set(stats.mutable_success(), totals.answered, sum.total);
  Set(stats.mutable_fail(), totals.failed, totals.failed_seconds);
  Set(stats.mutable_queue(), totals.answered, sum.queue);
  Set(stats.mutable_compute_input(), totals.answered, sum.decode + sum.stages.stage_in);
  Set(stats.mutable_compute_infer(), totals.answered, sum.stages.route + sum.stages.gemm + sum.stages.combine);
  Set(stats.mutable_compute_output(), totals.answered, sum.stages.stage_out);
}

void DescribeIndex(const LayerTable::Row& row, inference::RepositoryIndexResponse::ModelIndex* out) {
  out->set_name(row.spec.Name());
  out->set_version(std::string(kModelVersion));
  out->set_state(row.layer == nullptr ? "LOADING" : "READY");
}

}  // namespace expertd::kserve
