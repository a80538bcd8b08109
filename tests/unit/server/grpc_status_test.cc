#include "server/grpc_status.h"

#include <google/protobuf/any.pb.h>
#include <google/protobuf/duration.pb.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "server/status.h"

namespace expertd {
namespace {

// Field `number` (length-delimited, shorter than 128 bytes) of a message; empty when it is not there.
std::string BytesField(const std::string& message, int number) {
  for (std::size_t at = 0; at + 1 < message.size();) {
    const int tag = message[at++];
    if ((tag & 7) == 0) {
      while (message[at++] & 0x80) continue;
      continue;
    }
    const auto size = static_cast<std::size_t>(message[at++]);
    if (tag >> 3 == number) return message.substr(at, size);
    at += size;
  }
  return "";
}

TEST(GrpcStatusTest, CodesAndMessagesAreKept) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus(), nullptr).ok());
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status = ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "why"), nullptr);
    EXPECT_EQ(static_cast<int>(status.error_code()), code);
    EXPECT_EQ(status.error_message(), "why");
    EXPECT_EQ(status.error_details(), "");
  }
}

TEST(GrpcStatusTest, RetryHintsBecomeRetryInfo) {
  const grpc::Status status = ToGrpcStatus(RetryLater("full", std::chrono::microseconds(2'000'250)), nullptr);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  // google.rpc.Status { message = 2, details = 3: Any { RetryInfo { retry_delay = 1 } } }
  EXPECT_EQ(BytesField(status.error_details(), 2), "full");
  google::protobuf::Any any;
  ASSERT_TRUE(any.ParseFromString(BytesField(status.error_details(), 3)));
  EXPECT_EQ(any.type_url(), "type.googleapis.com/google.rpc.RetryInfo");
  google::protobuf::Duration delay;
  ASSERT_TRUE(delay.ParseFromString(BytesField(any.value(), 1)));
  EXPECT_EQ(delay.seconds(), 2);
  EXPECT_EQ(delay.nanos(), 250'000);
}

}  // namespace
}  // namespace expertd
