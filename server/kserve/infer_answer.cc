// ModelInferResponse and ModelStreamInferResponse.
#include <grpcpp/support/slice.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/codec/utf8.h"
#include "server/codec/wire_writer.h"
#include "server/kserve/infer_request.h"

namespace expertd::kserve {
namespace {

constexpr std::uint32_t kRawOutputContents = 6;  // of ModelInferResponse
constexpr std::uint32_t kInferResponse = 2;      // of ModelStreamInferResponse

inference::ModelInferResponse Describe(const Echo& echo, const ResponseHead& head) {
  inference::ModelInferResponse response;
  response.set_model_name(echo.model_name);
  response.set_model_version(std::string(kModelVersion));
  response.set_id(echo.id);
  auto& parameters = *response.mutable_parameters();
  parameters["fingerprint"].set_string_param(std::string(head.fingerprint));
  parameters["batch_rows"].set_int64_param(head.batch_rows);
  parameters["batch_requests"].set_int64_param(head.batch_requests);
  if (echo.on_stream) parameters["triton_final_response"].set_bool_param(true);
  auto& output = *response.add_outputs();
  output.set_name("output");
  output.set_datatype(head.dtype == DType::kF32 ? "FP32" : "BF16");
  output.add_shape(head.rows);
  output.add_shape(echo.hidden_size);
  return response;
}

// A message inside the stream's message, of which `to_follow` bytes come from elsewhere.
std::string Wrapped(const std::string& response, std::uint64_t to_follow) {
  std::string out;
  WireWriter(&out).FollowedBy(kInferResponse, response.size() + to_follow);
  return out + response;
}

std::string Encode(const Echo& echo, const ResponseHead& head, std::uint64_t output_bytes) {
  inference::ModelInferResponse response = Describe(echo, head);
  std::uint64_t to_follow = 0;
  if (echo.output) {
    auto& parameters = *response.mutable_outputs(0)->mutable_parameters();
    parameters = echo.output_parameters;
    parameters["shared_memory_byte_size"].set_int64_param(static_cast<std::int64_t>(output_bytes));
  } else {
    to_follow = output_bytes;
  }
  // Clients count on an entry for every output, also for one that lies elsewhere.
  if (to_follow == 0) response.add_raw_output_contents();
  std::string out = response.SerializeAsString();
  WireWriter(&out).FollowedBy(kRawOutputContents, to_follow);
  return echo.on_stream ? Wrapped(out, to_follow) : out;
}

}  // namespace

AnswerForm FormOf(const std::shared_ptr<const Echo>& echo) {
  AnswerForm form;
  form.encode = [echo](const ResponseHead& head, std::uint64_t output_bytes) {
    return Encode(*echo, head, output_bytes);
  };
  if (echo->output) {
    form.deliver = [echo](absl::Span<const std::byte> output) { return echo->output->Write(output); };
  }
  return form;
}

grpc::ByteBuffer StreamError(const Echo& echo, const absl::Status& status) {
  inference::ModelStreamInferResponse response;
  response.set_error_message(
      absl::StrCat(absl::StatusCodeToString(status.code()), ": ", ToValidUtf8(status.message())));
  response.mutable_infer_response()->set_model_name(echo.model_name);
  response.mutable_infer_response()->set_id(echo.id);
  const grpc::Slice slice(response.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace expertd::kserve
