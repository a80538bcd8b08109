#include "server/kserve/inference_service.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/grpc_status.h"
#include "server/kserve/describe.h"
#include "server/request_stream.h"
#include "server/server.h"

namespace expertd::kserve {
namespace {

// Answered in the order of the requests: ids are the callers' own business, and may be absent or repeat.
class InferStream final : public RequestStream {
 public:
  InferStream(Setup setup, const SharedMemoryOf& shared)
      : RequestStream(std::move(setup), Rpc::kModelStreamInfer, Order::kRequest), shared_(shared) {
    shared_.owner = caller().tenant;
  }

 private:
  void Handle(const grpc::ByteBuffer& message) override {
    const Clock::time_point time = Clock::now();
    const MessageSlices slices(message);
    InferRequest request = ReadInferRequest(slices, shared_, /*on_stream=*/true);
    if (!request.decodable) return Stop(request.head.status());
    Submit(next_id_++, std::move(request.head), request.payload, time, FormOf(request.echo),
           [echo = request.echo](const absl::Status& status) { return StreamError(*echo, status); });
  }

  SharedMemoryOf shared_;
  std::uint64_t next_id_ = 0;  // Handle's
};

}  // namespace

InferenceService::Unary* InferenceService::ModelInfer(Context* context, const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  absl::StatusOr<Caller> caller = access_.Admit(*context, Role::kInfer);
  if (!caller.ok()) return ForwardCall::Refuse(path_, Rpc::kModelInfer, context, caller.status());
  const ForwardCall::SubmitFn submit = [this, context](Slices message, const Arrival& arrival, AnswerFn answer) {
    InferRequest infer = ReadInferRequest(message, SharedBy(arrival.tenant, *context), /*on_stream=*/false);
    Arrival arrived = arrival;
    arrived.form = FormOf(infer.echo);
    return path_.Submit(std::move(infer.head), infer.payload, arrived, std::move(answer));
  };
  return ForwardCall::Start({path_, calls_, *std::move(caller), Rpc::kModelInfer, context}, submit, request, response);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* InferenceService::ModelStreamInfer(Context* context) {
  absl::StatusOr<Caller> caller = access_.Admit(*context, Role::kInfer);
  if (!caller.ok()) return RequestStream::Refuse(path_, Rpc::kModelStreamInfer, context, caller.status());
  RequestStream::Setup setup = {path_, calls_, *std::move(caller), context, limits_.max_in_flight_per_stream};
  return RequestStream::Open(std::make_shared<InferStream>(std::move(setup), SharedBy({}, *context)), context);
}

InferenceService::Unary* InferenceService::Query(Context* context,
                                                 const std::function<absl::Status(const Caller& caller)>& answer) {
  const Clock::time_point start = Clock::now();
  const absl::StatusOr<Caller> caller = access_.Admit(*context, Role::kInfer);
  if (!caller.ok()) return ForwardCall::Refuse(path_, Rpc::kInferenceQuery, context, caller.status());
  const absl::Status status = answer(*caller);
  path_.metrics().RequestDone(Rpc::kInferenceQuery, status.code(),
                              std::chrono::duration<double>(Clock::now() - start).count());
  Unary* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status, context));
  return reactor;
}

InferenceService::Unary* InferenceService::ServerLive(Context* context, const inference::ServerLiveRequest*,
                                                      inference::ServerLiveResponse* response) {
  return Query(context, [&](const Caller&) {
    response->set_live(health_.IsLive());
    return absl::OkStatus();
  });
}

InferenceService::Unary* InferenceService::ServerReady(Context* context, const inference::ServerReadyRequest*,
                                                       inference::ServerReadyResponse* response) {
  return Query(context, [&](const Caller&) {
    response->set_ready(health_.IsReady());
    return absl::OkStatus();
  });
}

InferenceService::Unary* InferenceService::ModelReady(Context* context, const inference::ModelReadyRequest* request,
                                                      inference::ModelReadyResponse* response) {
  return Query(context, [&](const Caller&) {
    const absl::StatusOr<LayerTable::Row> row = FindRow(request->name(), request->version());
    response->set_ready(row.ok() && health_.Serves(row->spec.Name()));
    return absl::OkStatus();
  });
}

InferenceService::Unary* InferenceService::ServerMetadata(Context* context, const inference::ServerMetadataRequest*,
                                                          inference::ServerMetadataResponse* response) {
  return Query(context, [&](const Caller&) {
    DescribeServer(kVersion, limits_.shared_memory, response);
    return absl::OkStatus();
  });
}

InferenceService::Unary* InferenceService::ModelMetadata(Context* context,
                                                         const inference::ModelMetadataRequest* request,
                                                         inference::ModelMetadataResponse* response) {
  return Query(context, [&](const Caller&) {
    const absl::StatusOr<LayerTable::Row> row = FindRow(request->name(), request->version());
    if (row.ok()) DescribeModel(row->spec, response);
    return row.status();
  });
}

InferenceService::Unary* InferenceService::ModelConfig(Context* context, const inference::ModelConfigRequest* request,
                                                       inference::ModelConfigResponse* response) {
  return Query(context, [&](const Caller&) {
    const absl::StatusOr<LayerTable::Row> row = FindRow(request->name(), request->version());
    if (row.ok()) DescribeConfig(*row, limits_.max_rows, response->mutable_config());
    return row.status();
  });
}

InferenceService::Unary* InferenceService::ModelStatistics(Context* context,
                                                           const inference::ModelStatisticsRequest* request,
                                                           inference::ModelStatisticsResponse* response) {
  return Query(context, [&](const Caller&) {
    std::vector<LayerTable::Row> rows;
    if (request->name().empty()) {
      rows = layers_.List();
    } else {
      absl::StatusOr<LayerTable::Row> row = FindRow(request->name(), request->version());
      if (!row.ok()) return row.status();
      rows.push_back(*std::move(row));
    }
    for (const LayerTable::Row& row : rows) {
      const LayerTotals totals = row.layer ? path_.metrics().TotalsOf(*row.layer) : LayerTotals{};
      DescribeStatistics(row.spec, totals, response->add_model_stats());
    }
    return absl::OkStatus();
  });
}

InferenceService::Unary* InferenceService::RepositoryIndex(Context* context,
                                                           const inference::RepositoryIndexRequest* request,
                                                           inference::RepositoryIndexResponse* response) {
  return Query(context, [&](const Caller&) {
    for (const LayerTable::Row& row : layers_.List()) {
      if (row.layer || !request->ready()) DescribeIndex(row, response->add_models());
    }
    return absl::OkStatus();
  });
}

InferenceService::Unary* InferenceService::MemoryQuery(
    Context* context, const std::function<absl::Status(const Caller& caller)>& answer) {
  return Query(context, [&](const Caller& caller) -> absl::Status {
    if (!limits_.shared_memory) {
      return absl::UnimplementedError("shared memory of callers needs --kserve-shared-memory of the server");
    }
    // Memory of this machine is nobody else's business.
    if (!IsLocalPeer(context->peer())) {
      return absl::PermissionDeniedError("shared memory is for callers on the server's own machine");
    }
    return answer(caller);
  });
}

InferenceService::Unary* InferenceService::SystemSharedMemoryStatus(
    Context* context, const inference::SystemSharedMemoryStatusRequest* request,
    inference::SystemSharedMemoryStatusResponse* response) {
  return MemoryQuery(context, [&](const Caller& caller) {
    const absl::StatusOr<std::vector<RegionInfo>> regions = memory_.List(caller.tenant, request->name());
    if (!regions.ok()) return regions.status();
    for (const RegionInfo& region : *regions) {
      auto& out = (*response->mutable_regions())[region.name];
      out.set_name(region.name);
      out.set_key(region.key);
      out.set_offset(region.offset);
      out.set_byte_size(region.byte_size);
    }
    return absl::OkStatus();
  });
}

InferenceService::Unary* InferenceService::SystemSharedMemoryRegister(
    Context* context, const inference::SystemSharedMemoryRegisterRequest* request,
    inference::SystemSharedMemoryRegisterResponse*) {
  return MemoryQuery(context, [&](const Caller& caller) {
    return memory_.Register(caller.tenant, {request->name(), request->key(), request->offset(), request->byte_size()});
  });
}

InferenceService::Unary* InferenceService::SystemSharedMemoryUnregister(
    Context* context, const inference::SystemSharedMemoryUnregisterRequest* request,
    inference::SystemSharedMemoryUnregisterResponse*) {
  return MemoryQuery(context, [&](const Caller& caller) {
    memory_.Unregister(caller.tenant, request->name());
    return absl::OkStatus();
  });
}

absl::StatusOr<LayerTable::Row> InferenceService::FindRow(absl::string_view name, absl::string_view version) const {
  const absl::StatusOr<LayerName> layer = ParseModelName(name, version);
  if (!layer.ok()) return layer.status();
  for (LayerTable::Row& row : layers_.List()) {
    if (row.spec.model == layer->model && row.spec.layer == layer->layer) return std::move(row);
  }
  return layers_.Find(layer->model, layer->layer).status();  // says what there is instead
}

SharedMemoryOf InferenceService::SharedBy(absl::string_view tenant, const Context& context) const {
  const bool allowed = limits_.shared_memory && IsLocalPeer(context.peer());
  return {allowed ? &memory_ : nullptr, tenant, limits_.max_message_bytes};
}

}  // namespace expertd::kserve
