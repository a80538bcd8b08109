// A caller that is there to be killed: opens a session, fills its ring with requests for tiny/0 and goes on as they are
// answered.
#include <grpcpp/create_channel.h>

#include <chrono>
#include <cstdio>
#include <string>

#include "client/cpp/shared_region.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto channel = grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials());
  const auto session = expertd::client::SharedSession::Open(channel);
  const auto region = session->CreateRegion({.bytes = 1 << 16, .ring_slots = 4, .slot_bytes = 1024});
  if (!region.ok()) {
    std::fprintf(stderr, "lane_peer: %s\n", region.status().ToString().c_str());
    return 1;
  }
  expertd::v1::StreamRequest message;
  expertd::v1::ForwardRequest& request = *message.mutable_forward();
  request.set_model("tiny");
  request.set_rows(8);
  request.set_dtype(expertd::v1::DTYPE_BF16);
  request.mutable_region()->set_handle((*region)->handle());
  request.mutable_region()->set_input_offset((*region)->rows_offset());
  request.mutable_region()->set_output_offset((*region)->rows_offset() + 4096);
  std::string answer;
  for (std::uint64_t id = 1;; ++id) {
    request.set_request_id(id);
    while (!(*region)->ring()->Send(message.SerializeAsString()).ok()) {
      if (!(*region)->ring()->Receive(std::chrono::seconds(30), &answer).ok()) return 1;
    }
  }
}
