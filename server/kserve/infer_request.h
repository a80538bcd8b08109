// ModelInferRequest as the request path wants it, and the answer as ModelInferResponse.
//
// Rows in raw contents are not copied here: they stay in the transport's slices. Everything else of the message is
// parsed by the generated classes; typed contents are used where those keep them, shared memory is copied once (and
// only then checked, so that its owner cannot change it in between).
#pragma once

#include <inference/grpc_service.pb.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/codec/forward_codec.h"
#include "server/kserve/shared_memory.h"
#include "server/request_path.h"

namespace expertd::kserve {

// There is one version of every model.
inline constexpr absl::string_view kModelVersion = "1";

// "<model>/<layer>". NotFound when it is not of that form, or `version` is neither empty nor kModelVersion.
struct LayerName {
  std::string model;
  std::uint32_t layer = 0;
};
absl::StatusOr<LayerName> ParseModelName(absl::string_view name, absl::string_view version);

// What of a request its answer repeats.
struct Echo {
  std::string model_name;
  std::string id;
  bool on_stream = false;        // ModelStreamInferResponse
  std::int64_t hidden_size = 0;  // as the input's shape says
  // Where the output goes instead of into the message, and the parameters that said so.
  std::optional<SharedTensor> output;
  google::protobuf::Map<std::string, inference::InferParameter> output_parameters;
};

struct InferRequest {
  bool decodable = true;
  absl::StatusOr<ForwardHead> head;
  std::vector<absl::string_view> payload;  // what the head's ranges refer to; valid as long as this and the message
  std::shared_ptr<Echo> echo;              // complete when head is ok; names and id also when it is not

 private:
  friend class InferReader;
  std::unique_ptr<inference::ModelInferRequest> fields_;
  std::vector<std::unique_ptr<char[]>> copied_;
};

// Where shared memory is found.
struct SharedMemoryOf {
  const SharedMemory* memory = nullptr;  // null: requests that refer to it are refused
  absl::string_view owner;
  std::int64_t max_tensor_bytes = 0;
};

// InvalidArgument naming tensor or parameter, value and limit; NotFound for names of models as above. Shapes are held
// against their bytes here, and against the layer by the request path.
InferRequest ReadInferRequest(Slices message, const SharedMemoryOf& shared, bool on_stream);

// ModelInferResponse or ModelStreamInferResponse, with the output raw or in shared memory.
AnswerForm FormOf(const std::shared_ptr<const Echo>& echo);

// A stream's answer to a request that failed: "CODE: message", and the request's id.
grpc::ByteBuffer StreamError(const Echo& echo, const absl::Status& status);

}  // namespace expertd::kserve
