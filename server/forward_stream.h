// ForwardStream: pipelined ForwardRequests, answered in the order of completion, and their withdrawal.
#pragma once

#include "server/request_stream.h"

namespace expertd {

class ForwardStream final : public RequestStream {
 public:
  explicit ForwardStream(Setup setup)
      : RequestStream(std::move(setup), Rpc::kForwardStream, RequestStream::Order::kCompletion) {}

 private:
  void Handle(const grpc::ByteBuffer& message) override;
};

}  // namespace expertd
