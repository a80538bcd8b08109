// A caller that maps device memory and is there to be killed:
//   device_lane_peer ADDRESS MODEL work      fills its ring with large requests and goes on as they are answered
//   device_lane_peer ADDRESS MODEL outstay   ends its session, keeps its mapping and writes there until it is killed
// Says "at work" when it is.
#include <grpcpp/create_channel.h>

#include <chrono>
#include <cstdio>
#include <string>

#include "client/cpp/messages.h"
#include "client/cpp/shared_region.h"
#include "tests/support/mapped_region.h"

namespace expertd::testing {
namespace {

constexpr std::int64_t kRows = 1024;
constexpr std::uint64_t kBytes = 32 << 20, kHalf = kBytes / 2;

absl::Status Work(const std::string& model, const client::DeviceRegion& device, client::RingClient& ring) {
  v1::StreamRequest message;
  v1::ForwardRequest& request = *message.mutable_forward();
  request.set_model(model);
  request.set_rows(kRows);
  request.set_dtype(v1::DTYPE_BF16);
  request.mutable_region()->set_handle(device.handle);
  request.mutable_region()->set_output_offset(kHalf);
  std::string answer;
  for (std::uint64_t id = 1;; ++id) {
    request.set_request_id(id);
    while (!ring.Send(message.SerializeAsString()).ok()) {
      if (absl::Status status = ring.Receive(std::chrono::seconds(30), &answer); !status.ok()) return status;
      v1::ForwardResponse response;
      response.ParseFromString(answer);
      if (absl::Status status = client::ErrorOf(response); !status.ok()) return status;
    }
    if (id == 100) std::puts("at work");
    if (id == 100) std::fflush(stdout);
  }
}

absl::Status Run(const std::string& address, const std::string& model, bool outstay) {
  const auto session = client::SharedSession::Open(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  const auto host = session->CreateRegion({.ring_slots = 4, .slot_bytes = 1024});
  if (!host.ok()) return host.status();
  const auto device = session->CreateDeviceRegion(kBytes);
  if (!device.ok()) return device.status();
  const auto mapped = MappedRegion::Open(*device);
  if (!mapped.ok()) return mapped.status();
  if (absl::Status status = (*mapped)->Fill(0x3c); !status.ok()) return status;
  if (!outstay) return Work(model, *device, *(*host)->ring());
  if (absl::Status status = session->Close(); !status.ok()) return status;
  for (unsigned char value = 1;; ++value) {
    if (absl::Status status = (*mapped)->Fill(value); !status.ok()) return status;
    if (value == 100) std::puts("at work");
    if (value == 100) std::fflush(stdout);
  }
}

}  // namespace
}  // namespace expertd::testing

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const absl::Status status = expertd::testing::Run(argv[1], argv[2], std::string(argv[3]) == "outstay");
  std::fprintf(stderr, "device_lane_peer: %s\n", status.ToString().c_str());
  return 1;
}
