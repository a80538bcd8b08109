#include "server/layer_message.h"

#include <string>

namespace expertd {

void DescribeLayer(const LayerTable::Row& row, v1::Layer* out) {
  const LayerSpec& spec = row.spec;
  out->set_model(spec.model);
  out->set_layer(static_cast<std::uint32_t>(spec.layer));
  out->set_state(row.layer ? v1::Layer::STATE_SERVING : v1::Layer::STATE_LOADING);
  out->set_family(spec.family);
  out->set_hidden_size(spec.hidden_size);
  out->set_num_experts(spec.num_experts);
  out->set_experts_per_token(spec.experts_per_token);
  out->set_intermediate_size(spec.intermediate_size);
  out->set_shared_intermediate_size(spec.shared_intermediate_size);
  out->set_weight_dtype(std::string(WeightFormatName(spec.expert_format)));
  out->set_activation(std::string(ActivationName(spec.activation)));
  out->set_routing(spec.RoutingInWords());
  if (row.layer == nullptr) return;
  out->set_fingerprint(row.layer->fingerprint());
  out->set_weight_bytes(static_cast<std::uint64_t>(row.layer->weight_bytes()));
  out->set_path(std::string(row.layer->path()));
}

}  // namespace expertd
