#include "server/grpc_status.h"

#include <google/protobuf/any.pb.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/status.h"

namespace expertd {
namespace {

using google::protobuf::internal::WireFormatLite;

// The distribution ships no generated google.rpc messages, so their few fields are written here.
constexpr int kStatusCode = 1, kStatusMessage = 2, kStatusDetails = 3;  // google.rpc.Status
constexpr int kRetryDelay = 1;                                          // google.rpc.RetryInfo

std::string RetryDetails(const absl::Status& status, std::chrono::microseconds after) {
  google::protobuf::Duration delay;
  delay.set_seconds(after.count() / 1'000'000);
  delay.set_nanos(static_cast<std::int32_t>(after.count() % 1'000'000 * 1000));
  google::protobuf::Any retry_info;
  retry_info.set_type_url("type.googleapis.com/google.rpc.RetryInfo");
  {
    google::protobuf::io::StringOutputStream stream(retry_info.mutable_value());
    google::protobuf::io::CodedOutputStream out(&stream);
    WireFormatLite::WriteBytes(kRetryDelay, delay.SerializeAsString(), &out);
  }
  std::string details;
  google::protobuf::io::StringOutputStream stream(&details);
  google::protobuf::io::CodedOutputStream out(&stream);
  WireFormatLite::WriteInt32(kStatusCode, static_cast<int>(status.code()), &out);
  WireFormatLite::WriteBytes(kStatusMessage, std::string(status.message()), &out);
  WireFormatLite::WriteBytes(kStatusDetails, retry_info.SerializeAsString(), &out);
  out.Trim();
  return details;
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status, grpc::ServerContextBase* context) {
  if (status.ok()) return grpc::Status::OK;
  const auto code = static_cast<grpc::StatusCode>(status.code());
  const std::optional<std::chrono::microseconds> after = RetryAfter(status);
  if (!after) return grpc::Status(code, std::string(status.message()));
  if (context != nullptr) {
    const auto milliseconds = std::chrono::ceil<std::chrono::milliseconds>(*after);
    context->AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(milliseconds.count()));
  }
  return grpc::Status(code, std::string(status.message()), RetryDetails(status, *after));
}

}  // namespace expertd
