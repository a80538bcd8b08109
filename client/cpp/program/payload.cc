#include "client/cpp/program/payload.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/tensor.h"

namespace expertd::client {
namespace {

template <class T>
void Append(T value, std::string& out) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AddRouting(const v1::Layer& layer, std::int64_t rows, std::mt19937_64& random, v1::Routing& routing) {
  const auto k = static_cast<std::size_t>(layer.experts_per_token());
  routing.set_k(static_cast<std::uint32_t>(k));
  std::vector<std::int32_t> experts(static_cast<std::size_t>(layer.num_experts()));
  std::iota(experts.begin(), experts.end(), 0);
  std::uniform_real_distribution<float> uniform(0.1f, 1.0f);
  std::vector<float> weights(k);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < k; ++i) {
      std::uniform_int_distribution<std::size_t> rest(i, experts.size() - 1);
      std::swap(experts[i], experts[rest(random)]);
      Append(experts[i], *routing.mutable_topk_ids());
    }
    for (float& weight : weights) weight = uniform(random);
    const float sum = std::accumulate(weights.begin(), weights.end(), 0.0f);
    for (const float weight : weights) Append(weight / sum, *routing.mutable_topk_weights());
  }
}

}  // namespace

Request RandomRequest(const v1::Layer& layer, std::int64_t rows, bool pre_routed, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values(static_cast<std::size_t>(rows * layer.hidden_size()));
  for (std::uint16_t& value : values) value = F32ToBf16(normal(random));

  Request request;
  request.head.set_model(layer.model());
  request.head.set_layer(layer.layer());
  request.head.set_rows(rows);
  request.head.set_dtype(v1::DTYPE_BF16);
  request.head.set_expected_fingerprint(layer.fingerprint());
  if (pre_routed) AddRouting(layer, rows, random, *request.head.mutable_routing());
  request.hidden_states = grpc::Slice(values.data(), values.size() * sizeof(values[0]));
  return request;
}

Request OneRow(const Request& request, std::int64_t row) {
  Request one;
  one.head = request.head;
  one.head.set_rows(1);
  const auto rows = static_cast<std::size_t>(request.head.rows());
  const auto at = static_cast<std::size_t>(row);
  const std::size_t bytes = request.hidden_states.size() / rows;
  one.hidden_states = request.hidden_states.sub(at * bytes, (at + 1) * bytes);
  if (request.head.has_routing()) {
    for (std::string* field :
         {one.head.mutable_routing()->mutable_topk_ids(), one.head.mutable_routing()->mutable_topk_weights()}) {
      *field = field->substr(at * (field->size() / rows), field->size() / rows);
    }
  }
  return one;
}

}  // namespace expertd::client
