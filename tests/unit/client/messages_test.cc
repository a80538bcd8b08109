#include "client/cpp/messages.h"

#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>

#include <random>

namespace expertd::client {
namespace {

std::string Bytes(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string out;
  for (const grpc::Slice& slice : slices) out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return out;
}

// `bytes` in two slices, cut at `at`.
grpc::ByteBuffer Cut(const std::string& bytes, std::size_t at) {
  const grpc::Slice slices[] = {grpc::Slice(bytes.substr(0, at)), grpc::Slice(bytes.substr(at))};
  return grpc::ByteBuffer(slices, 2);
}

Request SomeRequest(std::size_t payload) {
  Request request;
  request.head.set_model("qwen");
  request.head.set_layer(3);
  request.head.set_request_id(1ull << 40);
  request.head.set_rows(5);
  request.head.set_dtype(v1::DTYPE_BF16);
  request.head.set_output_dtype(v1::DTYPE_F32);
  request.head.mutable_routing()->set_k(2);
  request.head.mutable_routing()->set_topk_ids(std::string(40, 'i'));
  request.hidden_states = grpc::Slice(std::string(payload, 'x'));
  return request;
}

TEST(MessagesTest, ForwardIsWhatProtobufReads) {
  for (const std::size_t payload : {0u, 1u, 127u, 128u, 70000u}) {
    const Request request = SomeRequest(payload);
    v1::ForwardRequest expected = request.head;
    expected.set_hidden_states(std::string(payload, 'x'));

    v1::ForwardRequest forward;
    ASSERT_TRUE(forward.ParseFromString(Bytes(EncodeForward(request))));
    EXPECT_EQ(forward.SerializeAsString(), expected.SerializeAsString());
    EXPECT_TRUE(forward.has_hidden_states()) << "zero rows are a payload too";

    v1::StreamRequest stream;
    ASSERT_TRUE(stream.ParseFromString(Bytes(EncodeStreamForward(request))));
    EXPECT_EQ(stream.forward().SerializeAsString(), expected.SerializeAsString());
  }
}

TEST(MessagesTest, CancelIsWhatProtobufReads) {
  v1::StreamRequest message;
  ASSERT_TRUE(message.ParseFromString(Bytes(EncodeStreamCancel(77))));
  EXPECT_EQ(message.cancel().request_id(), 77u);
}

v1::ForwardResponse SomeResponse() {
  v1::ForwardResponse response;
  response.set_request_id(9);
  v1::ForwardResult& result = *response.mutable_result();
  result.set_rows(2);
  result.set_dtype(v1::DTYPE_F32);
  result.mutable_stages()->set_gemm(12.5f);
  result.set_batch_rows(7);
  result.set_fingerprint("abc");
  result.mutable_routing()->set_topk_ids("12345678");
  result.set_output("0123456789abcdef");
  return response;
}

void ExpectSome(const absl::StatusOr<Answer>& answer, const std::string& where) {
  ASSERT_TRUE(answer.ok()) << where << answer.status();
  EXPECT_EQ(answer->OutputString(), "0123456789abcdef") << where;
  EXPECT_EQ(answer->output_bytes, 16u) << where;
  v1::ForwardResponse rest = SomeResponse();
  rest.mutable_result()->clear_output();
  EXPECT_EQ(answer->response.SerializeAsString(), rest.SerializeAsString()) << where;
}

TEST(MessagesTest, AnswersAreReadWhereverTheSlicesAreCut) {
  const std::string bytes = SomeResponse().SerializeAsString();
  for (std::size_t at = 0; at <= bytes.size(); ++at) {
    grpc::ByteBuffer message = Cut(bytes, at);
    ExpectSome(DecodeAnswer(message), "cut at " + std::to_string(at));
  }
}

TEST(MessagesTest, FieldsMayStandInAnyOrderAmongUnknownOnes) {
  v1::ForwardResponse id, result_only;
  id.set_request_id(9);
  v1::ForwardResult output, rest = SomeResponse().result();
  output.set_output(rest.output());
  rest.clear_output();
  // Field 111 in each wire type.
  const std::string unknown =
      std::string("\xF8\x06\x01") + "\xF9\x06" + "12345678" + "\xFA\x06\x02zz" + "\xFD\x06" + "1234";
  const std::string result = unknown + output.SerializeAsString() + rest.SerializeAsString();
  std::string bytes = unknown + "\x12" + static_cast<char>(result.size()) + result + id.SerializeAsString();
  grpc::ByteBuffer message = Cut(bytes, 5);
  const auto answer = DecodeAnswer(message);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->OutputString(), "0123456789abcdef");
  EXPECT_EQ(answer->response.request_id(), 9u);
  EXPECT_EQ(answer->result().batch_rows(), 7u);
}

TEST(MessagesTest, ResultWithoutOutputIsEmpty) {
  v1::ForwardResponse response = SomeResponse();
  response.mutable_result()->clear_output();
  grpc::ByteBuffer message = Cut(response.SerializeAsString(), 3);
  const auto answer = DecodeAnswer(message);
  ASSERT_TRUE(answer.ok());
  EXPECT_EQ(answer->output_bytes, 0u);
  EXPECT_EQ(answer->result().rows(), 2);
}

TEST(MessagesTest, WhatIsNoAnswerIsRefusedAndNeverReadPast) {
  const std::string bytes = SomeResponse().SerializeAsString();
  for (std::size_t size = 1; size < bytes.size(); ++size) {
    if (size == 2) continue;  // a response with an id only
    grpc::ByteBuffer message = Cut(bytes.substr(0, size), size / 2);
    EXPECT_EQ(DecodeAnswer(message).status().code(), absl::StatusCode::kInternal) << size;
  }
  google::protobuf::LogSilencer silence;  // it complains about mutated strings
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    std::string mutated = bytes;
    mutated[random() % mutated.size()] = static_cast<char>(random());
    grpc::ByteBuffer message = Cut(mutated, random() % mutated.size());
    const auto answer = DecodeAnswer(message);
    v1::ForwardResponse reference;
    if (answer.ok() && reference.ParseFromString(mutated)) {
      EXPECT_EQ(answer->OutputString(), reference.result().output());
    }
  }
}

TEST(MessagesTest, ErrorsBecomeStatusesWithTheirRetryHint) {
  EXPECT_TRUE(ErrorOf(SomeResponse()).ok());
  EXPECT_EQ(ErrorOf({}).code(), absl::StatusCode::kInternal);
  v1::ForwardResponse response;
  response.mutable_error()->set_code(8);
  response.mutable_error()->set_message("full");
  response.mutable_error()->set_retry_after_us(1500);
  const absl::Status status = ErrorOf(response);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "full");
  EXPECT_EQ(RetryAfter(status), std::chrono::microseconds(1500));
  EXPECT_EQ(RetryAfter(absl::InternalError("x")), std::nullopt);
  response.mutable_error()->set_code(0);
  EXPECT_EQ(ErrorOf(response).code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace expertd::client
