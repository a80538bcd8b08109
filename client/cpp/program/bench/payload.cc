#include "client/cpp/program/bench/payload.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/cpp/program/bench/zipf.h"
#include "kernels/tensor.h"

namespace expertd::client {
namespace {

constexpr std::int64_t kPoolBytes = 16 << 20;  // of one hidden size, unless a request is larger
constexpr std::int64_t kPoolRequests = 64;     // of the largest size: enough that no two in flight are alike

template <class T>
void Append(T value, std::string& out) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::int64_t PoolRows(const std::vector<v1::Layer>& layers, std::int64_t most_rows) {
  std::int64_t widest = 1;
  for (const v1::Layer& layer : layers) widest = std::max(widest, layer.hidden_size());
  const auto row_bytes = widest * static_cast<std::int64_t>(sizeof(std::uint16_t));
  return std::max(most_rows, std::min(most_rows * kPoolRequests, kPoolBytes / row_bytes));
}

grpc::Slice NormalRows(std::int64_t count, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
  for (std::uint16_t& value : values) value = F32ToBf16(normal(random));
  return grpc::Slice(values.data(), values.size() * sizeof(values[0]));
}

// Weighted sampling without replacement: the k earliest of exponential clocks that run at the weights' rates
// (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).
class ExpertDraw {
 public:
  ExpertDraw(const v1::Layer& layer, double exponent, std::mt19937_64& random)
      : random_(random),
        rates_(ZipfWeights(layer.num_experts(), exponent)),
        times_(rates_.size()),
        order_(rates_.size()) {
    std::shuffle(rates_.begin(), rates_.end(), random_);  // which experts are popular
  }

  // The first k of the result.
  const std::vector<std::int32_t>& Draw(std::size_t k) {
    for (std::size_t i = 0; i < rates_.size(); ++i) times_[i] = clock_(random_) / rates_[i];
    std::iota(order_.begin(), order_.end(), 0);
    const auto earlier = [&](std::int32_t a, std::int32_t b) {
      return times_[static_cast<std::size_t>(a)] < times_[static_cast<std::size_t>(b)];
    };
    std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(k), order_.end(), earlier);
    return order_;
  }

 private:
  std::mt19937_64& random_;
  std::exponential_distribution<double> clock_;
  std::vector<double> rates_, times_;
  std::vector<std::int32_t> order_;
};

}  // namespace

absl::StatusOr<ExpertSkew> ParseRouting(absl::string_view text) {
  if (text == "server") return ExpertSkew();
  if (text == "uniform") return ExpertSkew(0.0);
  absl::string_view rest = text;
  double exponent = 0;
  if (absl::ConsumePrefix(&rest, "zipf:") && absl::SimpleAtod(rest, &exponent) && exponent >= 0 &&
      exponent <= kMaxZipfExponent) {
    return ExpertSkew(exponent);
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "routing: ", text, " is neither server nor uniform nor zipf:EXPONENT with 0 <= EXPONENT <= ", kMaxZipfExponent));
}

Payloads::Payloads(const std::vector<v1::Layer>& layers, std::int64_t most_rows, ExpertSkew skew, std::uint64_t seed)
    : rows_(PoolRows(layers, most_rows)) {
  std::mt19937_64 random(seed);
  std::map<std::int64_t, grpc::Slice> by_hidden_size;
  for (const v1::Layer& layer : layers) {
    auto [values, fresh] = by_hidden_size.try_emplace(layer.hidden_size());
    if (fresh) values->second = NormalRows(rows_ * layer.hidden_size(), random);
    values_.push_back(values->second);
    v1::ForwardRequest& head = heads_.emplace_back();
    head.set_model(layer.model());
    head.set_layer(layer.layer());
    head.set_dtype(v1::DTYPE_BF16);
    head.set_expected_fingerprint(layer.fingerprint());
    if (!skew.has_value()) continue;
    Experts& experts = experts_.emplace_back();
    experts.k = static_cast<std::size_t>(layer.experts_per_token());
    ExpertDraw draw(layer, *skew, random);
    std::uniform_real_distribution<float> uniform(0.1f, 1.0f);
    std::vector<float> weights(experts.k);
    for (std::int64_t row = 0; row < rows_; ++row) {
      const std::vector<std::int32_t>& ids = draw.Draw(experts.k);
      for (std::size_t i = 0; i < experts.k; ++i) Append(ids[i], experts.ids);
      for (float& weight : weights) weight = uniform(random);
      const float sum = std::accumulate(weights.begin(), weights.end(), 0.0f);
      for (const float weight : weights) Append(weight / sum, experts.weights);
    }
  }
}

Request Payloads::Make(std::size_t layer, std::int64_t first, std::int64_t count) const {
  Request request;
  request.head = heads_[layer];
  request.head.set_rows(count);
  const auto begin = static_cast<std::size_t>(first), size = static_cast<std::size_t>(count);
  const std::size_t row_bytes = values_[layer].size() / static_cast<std::size_t>(rows_);
  request.hidden_states = values_[layer].sub(begin * row_bytes, (begin + size) * row_bytes);
  if (!experts_.empty()) {
    const Experts& experts = experts_[layer];
    const std::size_t bytes = experts.k * sizeof(std::int32_t);
    v1::Routing& routing = *request.head.mutable_routing();
    routing.set_k(static_cast<std::uint32_t>(experts.k));
    routing.set_topk_ids(experts.ids.substr(begin * bytes, size * bytes));
    routing.set_topk_weights(experts.weights.substr(begin * bytes, size * bytes));
  }
  return request;
}

Request RandomRequest(const v1::Layer& layer, std::int64_t rows, bool pre_routed, std::uint64_t seed) {
  const ExpertSkew skew = pre_routed ? ExpertSkew(0.0) : ExpertSkew();
  return Payloads({layer}, std::max<std::int64_t>(1, rows), skew, seed).Make(0, 0, rows);
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
