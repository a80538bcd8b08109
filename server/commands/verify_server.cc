// The subject that is a server: plain unary calls through the generated stub.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "expertd/v1/expertd.grpc.pb.h"
#include "server/commands/verify_subject.h"

namespace expertd {
namespace {

constexpr std::chrono::seconds kConnectTimeout{10};
constexpr std::chrono::seconds kForwardTimeout{300};

using Stub = v1::Expertd::Stub;

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

// Little-endian bytes of `values`, each converted to T by `convert`.
template <class T, class Iterator, class Convert>
std::string ToBytes(Iterator begin, std::int64_t count, const Convert& convert) {
  std::string bytes(static_cast<std::size_t>(count) * sizeof(T), '\0');
  for (std::int64_t i = 0; i < count; ++i) {
    const T value = convert(begin[i]);
    std::memcpy(&bytes[i * sizeof(T)], &value, sizeof(T));
  }
  return bytes;
}

template <class T, class To>
void AppendFrom(const std::string& bytes, std::vector<To>& values) {
  for (std::size_t i = 0; i + sizeof(T) <= bytes.size(); i += sizeof(T)) {
    T value;
    std::memcpy(&value, &bytes[i], sizeof(T));
    values.push_back(static_cast<To>(value));
  }
}

v1::ForwardRequest MakeRequest(const v1::Layer& layer, const reference::LayerRows& rows, std::int64_t first,
                               std::int64_t count, DType dtype) {
  const auto to_float = [](double x) { return static_cast<float>(x); };
  const auto to_bf16 = [](double x) { return F32ToBf16(static_cast<float>(x)); };
  const auto values = rows.rows.begin() + first * layer.hidden_size();
  const std::int64_t elements = count * layer.hidden_size();
  v1::ForwardRequest request;
  request.set_model(layer.model());
  request.set_layer(layer.layer());
  request.set_rows(count);
  request.set_dtype(dtype == DType::kF32 ? v1::DTYPE_F32 : v1::DTYPE_BF16);
  request.set_output_dtype(v1::DTYPE_F32);
  request.set_shared_expert(rows.shared_expert);
  request.set_return_routing(rows.k == 0);
  if (rows.k > 0) {
    v1::Routing& routing = *request.mutable_routing();
    routing.set_k(static_cast<std::uint32_t>(rows.k));
    const auto same = [](std::int32_t id) { return id; };
    routing.set_topk_ids(ToBytes<std::int32_t>(rows.topk_ids.begin() + first * rows.k, count * rows.k, same));
    routing.set_topk_weights(ToBytes<float>(rows.topk_weights.begin() + first * rows.k, count * rows.k, to_float));
  }
  request.set_hidden_states(dtype == DType::kF32 ? ToBytes<float>(values, elements, to_float)
                                                 : ToBytes<std::uint16_t>(values, elements, to_bf16));
  return request;
}

class ServerSubject final : public VerifySubject {
 public:
  ServerSubject(Stub& stub, v1::Layer layer, std::int64_t max_rows)
      : stub_(stub), layer_(std::move(layer)), max_rows_(max_rows) {}

  const std::string& fingerprint() const override { return layer_.fingerprint(); }
  std::string path() const override { return layer_.path(); }

  absl::StatusOr<reference::Answer> Run(const reference::LayerRows& rows, DType dtype) override {
    reference::Answer answer;
    for (std::int64_t first = 0; first < rows.n; first += max_rows_) {
      const std::int64_t count = std::min(max_rows_, rows.n - first);
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + kForwardTimeout);
      v1::ForwardResponse response;
      const grpc::Status status = stub_.Forward(&context, MakeRequest(layer_, rows, first, count, dtype), &response);
      if (!status.ok()) return FromGrpc(status);
      const v1::ForwardResult& result = response.result();
      if (result.output().size() != static_cast<std::size_t>(count * layer_.hidden_size()) * sizeof(float)) {
        return absl::InternalError(absl::StrFormat("the answer's output has %d bytes", result.output().size()));
      }
      AppendFrom<float>(result.output(), answer.output);
      AppendFrom<std::int32_t>(result.routing().topk_ids(), answer.topk_ids);
      AppendFrom<float>(result.routing().topk_weights(), answer.topk_weights);
    }
    const std::size_t slots = static_cast<std::size_t>(rows.k == 0 ? rows.n * layer_.experts_per_token() : 0);
    if (rows.k == 0 && (answer.topk_ids.size() != slots || answer.topk_weights.size() != slots)) {
      return absl::InternalError(absl::StrFormat("the answer's routing has %d ids", answer.topk_ids.size()));
    }
    return answer;
  }

 private:
  Stub& stub_;
  const v1::Layer layer_;
  const std::int64_t max_rows_;
};

class ServerSubjects final : public VerifySubjects {
 public:
  explicit ServerSubjects(const std::string& endpoint) : endpoint_(endpoint) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    stub_ = v1::Expertd::NewStub(grpc::CreateCustomChannel(endpoint, grpc::InsecureChannelCredentials(), arguments));
  }

  absl::Status Connect(const std::string& model) {
    v1::GetServerInfoResponse info;
    if (absl::Status status = Ask(&Stub::GetServerInfo, v1::GetServerInfoRequest(), info); !status.ok()) return status;
    device_ = info.device();
    max_rows_ = std::max<std::int64_t>(1, info.max_rows_per_request());
    v1::ListLayersResponse all;
    if (absl::Status status = Ask(&Stub::ListLayers, v1::ListLayersRequest(), all); !status.ok()) return status;
    return Choose(model, all);
  }

  std::string description() const override { return absl::StrCat(endpoint_, " (", device_, ")"); }

  std::vector<SubjectLayer> layers() const override {
    std::vector<SubjectLayer> layers;
    for (const v1::Layer& layer : layers_) layers.push_back({layer.layer(), layer.hidden_size()});
    return layers;
  }

  absl::StatusOr<std::unique_ptr<VerifySubject>> Open(std::int64_t index, const LayerSource*) override {
    for (const v1::Layer& layer : layers_) {
      if (layer.layer() == index) return std::make_unique<ServerSubject>(*stub_, layer, max_rows_);
    }
    return absl::NotFoundError(absl::StrCat("layer: ", index, " is not served"));
  }

 private:
  template <class Method, class Request, class Response>
  absl::Status Ask(Method method, const Request& request, Response& response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kConnectTimeout);
    const grpc::Status status = ((*stub_).*method)(&context, request, &response);
    if (status.ok()) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("endpoint: ", endpoint_, ": ", status.error_message()));
  }

  absl::Status Choose(const std::string& model, const v1::ListLayersResponse& all) {
    std::set<std::string> models;
    for (const v1::Layer& layer : all.layers()) models.insert(layer.model());
    if (model.empty() && models.size() != 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("model: the server has ", models.size(), " (", absl::StrJoin(models, ", "), "): choose one"));
    }
    const std::string chosen = model.empty() ? *models.begin() : model;
    for (const v1::Layer& layer : all.layers()) {
      if (layer.model() == chosen && layer.state() == v1::Layer::STATE_SERVING) layers_.push_back(layer);
    }
    if (!layers_.empty()) return absl::OkStatus();
    return absl::NotFoundError(
        absl::StrCat("model: ", chosen, " has no layer in service; the server has ", absl::StrJoin(models, ", ")));
  }

  const std::string endpoint_;
  std::unique_ptr<Stub> stub_;
  std::string device_;
  std::int64_t max_rows_ = 1;
  std::vector<v1::Layer> layers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<VerifySubjects>> ConnectServerSubjects(const std::string& endpoint,
                                                                      const std::string& model) {
  auto subjects = std::make_unique<ServerSubjects>(endpoint);
  if (absl::Status status = subjects->Connect(model); !status.ok()) return status;
  return subjects;
}

}  // namespace expertd
