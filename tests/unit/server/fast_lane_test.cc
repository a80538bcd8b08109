// The fast lane through a whole server: sessions, rows in place, rings, and peers that misbehave or die.
#include <gmock/gmock.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client/cpp/shared_region.h"
#include "server/null_engine.h"
#include "tests/integration/process.h"
#include "tests/unit/server/server_fixture.h"

namespace expertd::testing {
namespace {

using client::RegionOptions;
using client::SharedRegion;
using client::SharedSession;
using ::testing::HasSubstr;

constexpr std::chrono::seconds kLong{10};
constexpr std::uint64_t kRowBytes = kHidden * 2;

class FastLaneServerTest : public ServerTest {
 protected:
  FastLaneServerTest() {
    options_.fast_lane_socket = absl::StrCat(::testing::TempDir(), "/fast_lane.", getpid());
    options_.fast_lane_mib = 2;
    options_.fast_lane_session_mib = 1;
  }

  void Open(const RegionOptions& options = {.bytes = 64 << 10, .ring_slots = 4, .slot_bytes = 1024}) {
    Start();
    session_ = SharedSession::Open(channel_);
    absl::StatusOr<std::unique_ptr<SharedRegion>> region = session_->CreateRegion(options);
    ASSERT_TRUE(region.ok()) << region.status();
    region_ = *std::move(region);
  }

  // A request for rows that are in the region, with the output behind them.
  v1::ForwardRequest Place(std::uint64_t id, std::int64_t rows) {
    v1::ForwardRequest request = MakeRequest(id, rows);
    const std::string states = request.hidden_states();
    v1::RegionRows* where = request.mutable_region();
    where->set_handle(region_->handle());
    where->set_input_offset(region_->rows_offset());
    where->set_output_offset(region_->rows_offset() + static_cast<std::uint64_t>(rows) * kRowBytes);
    std::memcpy(region_->data() + where->input_offset(), states.data(), states.size());
    return request;
  }
  std::string Bytes(std::uint64_t offset, std::int64_t rows) const {
    return std::string(reinterpret_cast<const char*>(region_->data() + offset),
                       static_cast<std::size_t>(rows) * kRowBytes);
  }

  absl::Status Ring(const v1::ForwardRequest& request) {
    v1::StreamRequest message;
    *message.mutable_forward() = request;
    return region_->ring()->Send(message.SerializeAsString());
  }
  v1::ForwardResponse Heard() {
    std::string bytes;
    v1::ForwardResponse response;
    const absl::Status status = region_->ring()->Receive(kLong, &bytes);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(response.ParseFromString(bytes));
    return response;
  }
  // The null engine gives the rows back.
  void ExpectServes(std::uint64_t id) {
    v1::ForwardResponse response;
    const v1::ForwardRequest request = MakeRequest(id, 3);
    const grpc::Status status = Forward(request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.result().output(), request.hidden_states());
  }
  bool AllFreed() {
    return Eventually([&] { return Metric("expertd_region_bytes") == 0 && Metric("expertd_rows_in_flight") == 0; });
  }

  std::unique_ptr<SharedSession> session_;
  std::unique_ptr<SharedRegion> region_;
};

TEST_F(FastLaneServerTest, UnaryCallsAndRingsComputeInPlace) {
  Open();
  EXPECT_GE(Metric("expertd_region_bytes"), 64 << 10);
  const v1::ForwardRequest unary = Place(1, 5);
  v1::ForwardResponse response;
  const grpc::Status status = Forward(unary, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(response.result().output().empty());
  EXPECT_EQ(response.result().rows(), 5);
  EXPECT_EQ(Bytes(unary.region().output_offset(), 5), Bytes(unary.region().input_offset(), 5));

  v1::ForwardRequest ring = Place(2, 7);
  ring.mutable_routing()->set_k(2);
  const std::int32_t ids[14] = {0, 1, 1, 2, 2, 3, 3, -1, -1, -1, 0, 3, 2, 0};
  const float weights[14] = {};
  ring.mutable_routing()->set_topk_ids(ids, sizeof(ids));
  ring.mutable_routing()->set_topk_weights(weights, sizeof(weights));
  ASSERT_TRUE(Ring(ring).ok());
  response = Heard();
  ASSERT_TRUE(response.has_result()) << response.error().message();
  EXPECT_EQ(response.request_id(), 2u);
  EXPECT_EQ(Bytes(ring.region().output_offset(), 7), Bytes(ring.region().input_offset(), 7));
  EXPECT_EQ(Metric("expertd_requests_total{code=\"OK\",rpc=\"Ring\"}"), 1);

  // A few rows may also lie in the slot itself.
  const v1::ForwardRequest inlined = MakeRequest(3, 2);
  ASSERT_TRUE(Ring(inlined).ok());
  EXPECT_EQ(Heard().result().output(), inlined.hidden_states());
}

TEST_F(FastLaneServerTest, WhatIsWrongIsRefusedByNameOnBothWays) {
  Open();
  const auto with = [&](auto change) {
    v1::ForwardRequest request = Place(9, 2);
    change(request);
    return request;
  };
  const struct {
    v1::ForwardRequest request;
    grpc::StatusCode code;
    const char* message;
  } cases[] = {
      {with([](auto& r) { r.mutable_region()->set_handle(1); }), grpc::NOT_FOUND, "region.handle: 1 names no region"},
      {with([](auto& r) { r.mutable_region()->set_input_offset(0); }), grpc::INVALID_ARGUMENT,
       "region.input_offset: 0 lies before"},
      {with([](auto& r) { r.mutable_region()->set_output_offset(~std::uint64_t{63}); }), grpc::INVALID_ARGUMENT,
       "end beyond the region"},
      {with([](auto& r) { r.mutable_region()->set_output_offset(r.region().input_offset()); }), grpc::INVALID_ARGUMENT,
       "overlap the input"},
      {with([](auto& r) { r.set_output_dtype(v1::DTYPE_F8_E4M3); }), grpc::INVALID_ARGUMENT,
       "output_dtype: rows in a region are bf16 or f32"},
      {with([](auto& r) { r.set_rows(1000); }), grpc::INVALID_ARGUMENT, "end beyond the region"},
      {with([](auto& r) {
         const std::int32_t ids[4] = {0, 1, 7, 0};
         const float weights[4] = {};
         r.mutable_routing()->set_k(2);
         r.mutable_routing()->set_topk_ids(ids, sizeof(ids));
         r.mutable_routing()->set_topk_weights(weights, sizeof(weights));
       }),
       grpc::INVALID_ARGUMENT, "topk_ids[1,0]=7 is not an expert"},
  };
  for (const auto& c : cases) {
    v1::ForwardResponse response;
    const grpc::Status status = Forward(c.request, &response);
    EXPECT_EQ(status.error_code(), c.code);
    EXPECT_THAT(status.error_message(), HasSubstr(c.message));
    ASSERT_TRUE(Ring(c.request).ok());
    response = Heard();
    EXPECT_EQ(response.request_id(), 9u);
    EXPECT_EQ(response.error().code(), static_cast<int>(c.code));
    EXPECT_THAT(response.error().message(), HasSubstr(c.message));
  }
  ASSERT_TRUE(region_->ring()->Send("\xff\xff no message").ok());
  EXPECT_THAT(Heard().error().message(), HasSubstr("not decodable"));
  v1::ForwardRequest wordy = Place(10, 60);
  wordy.set_return_routing(true);
  ASSERT_TRUE(Ring(wordy).ok());
  EXPECT_THAT(Heard().error().message(), HasSubstr("does not fit a slot, which holds 1016"));
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_rows_in_flight") == 0; }));
  ExpectServes(11);
}

TEST_F(FastLaneServerTest, TheSessionsEndFreesItsRegions) {
  Open();
  const v1::ForwardRequest request = Place(1, 2);
  EXPECT_TRUE(session_->Close().ok());
  EXPECT_TRUE(AllFreed());
  v1::ForwardResponse response;
  EXPECT_EQ(Forward(request, &response).error_code(), grpc::NOT_FOUND);
  std::string bytes;
  EXPECT_EQ(region_->ring()->Receive(kLong, &bytes).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Metric("expertd_requests_total{code=\"OK\",rpc=\"Session\"}"), 1);
}

TEST_F(FastLaneServerTest, MemoryInUseOutlivesTheSession) {
  Open();
  engine_->Close();
  const v1::ForwardRequest request = Place(1, 2);
  v1::ForwardResponse response;
  grpc::Status status;
  std::thread caller([&] { status = Forward(request, &response); });
  ASSERT_TRUE(engine_->WaitForBatches(1));
  EXPECT_TRUE(session_->Close().ok());
  v1::ForwardResponse refused;
  EXPECT_EQ(Forward(request, &refused).error_code(), grpc::NOT_FOUND);
  EXPECT_GT(Metric("expertd_region_bytes"), 0);
  engine_->Open();
  caller.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(Bytes(request.region().output_offset(), 2), Bytes(request.region().input_offset(), 2));
  EXPECT_TRUE(AllFreed());
}

// Rows that change while their batch runs spoil their own answer at most; ids were copied before they were checked.
TEST_F(FastLaneServerTest, APeerThatChangesItsMemoryInFlightSpoilsNothingElse) {
  Open();
  engine_->Close();
  v1::ForwardRequest request = Place(1, 16);
  ASSERT_TRUE(Ring(request).ok());
  ASSERT_TRUE(engine_->WaitForBatches(1));
  const v1::ForwardRequest neighbour = MakeRequest(2, 16);
  v1::ForwardResponse answer;
  grpc::Status status;
  std::thread caller([&] { status = Forward(neighbour, &answer); });
  std::atomic<bool> stop = false;
  std::thread vandal([&] {  // over everything but the counters
    for (std::uint32_t i = 0; !stop; ++i) {
      for (std::size_t at = sizeof(lane::RingHeader); at + 4 <= region_->size(); at += 1024) {
        const std::uint32_t rubbish = i * 2654435761u;
        std::memcpy(region_->data() + at, &rubbish, sizeof(rubbish));
      }
    }
  });
  engine_->Open();
  caller.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(answer.result().output(), neighbour.hidden_states());
  for (std::uint64_t id = 3; id < 20; ++id) ExpectServes(id);
  stop = true;
  vandal.join();
  EXPECT_TRUE(session_->Close().ok());
  EXPECT_TRUE(AllFreed());
}

TEST_F(FastLaneServerTest, APeerThatBreaksItsRingLosesItsSession) {
  Open();
  auto& header = *reinterpret_cast<lane::RingHeader*>(region_->data());
  header.answer_head.store(1);  // it says that it took an answer that never came
  ASSERT_TRUE(Ring(MakeRequest(1, 1)).ok());
  EXPECT_TRUE(Eventually([&] { return header.closed.load() == 1; }));
  const absl::Status end = session_->Close();
  EXPECT_EQ(end.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(end.message()), HasSubstr("ring: answer_head leaves"));
  EXPECT_TRUE(AllFreed());
  ExpectServes(2);
}

TEST_F(FastLaneServerTest, CancelAndRepeatedIdsOnARing) {
  Open();
  engine_->Close();
  ASSERT_TRUE(Ring(Place(1, 1)).ok());
  ASSERT_TRUE(engine_->WaitForBatches(1));
  ASSERT_TRUE(Ring(MakeRequest(2, 1)).ok());
  ASSERT_TRUE(Ring(MakeRequest(2, 1)).ok());
  v1::ForwardResponse response = Heard();
  EXPECT_EQ(response.request_id(), 2u);
  EXPECT_EQ(response.error().code(), grpc::INVALID_ARGUMENT);
  v1::StreamRequest cancel;
  cancel.mutable_cancel()->set_request_id(2);
  ASSERT_TRUE(region_->ring()->Send(cancel.SerializeAsString(), /*wants_answer=*/false).ok());
  response = Heard();
  EXPECT_EQ(response.request_id(), 2u);
  EXPECT_EQ(response.error().code(), grpc::CANCELLED);
  engine_->Open();
  EXPECT_EQ(Heard().request_id(), 1u);
}

TEST_F(FastLaneServerTest, ADrainAnswersWhatTheRingHasTaken) {
  Open();
  engine_->Close();
  ASSERT_TRUE(Ring(Place(1, 1)).ok());
  ASSERT_TRUE(engine_->WaitForBatches(1));
  std::thread drain([&] { EXPECT_TRUE(server_->Drain(Clock::now() + kLong)); });
  auto& header = *reinterpret_cast<lane::RingHeader*>(region_->data());
  EXPECT_EQ(header.closed.load(), 0u);
  engine_->Open();
  EXPECT_TRUE(Heard().has_result());
  drain.join();
  std::string bytes;
  EXPECT_EQ(region_->ring()->Receive(kLong, &bytes).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(session_->Close().code(), absl::StatusCode::kUnavailable);
}

TEST_F(FastLaneServerTest, IsOffUnlessAskedForAndBoundedWhenOn) {
  options_.fast_lane_socket.clear();
  Start();
  session_ = SharedSession::Open(channel_);
  EXPECT_EQ(session_->CreateRegion({.bytes = 1}).status().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(FastLaneServerTest, RegionsAreBounded) {
  Open();
  EXPECT_THAT(std::string(session_->CreateRegion({.bytes = 1 << 20}).status().message()),
              HasSubstr("--fast-lane-session-mib"));
  auto other = SharedSession::Open(channel_);
  EXPECT_TRUE(other->CreateRegion({.bytes = 1 << 20}).ok());
  auto third = SharedSession::Open(channel_);
  const absl::Status full = third->CreateRegion({.bytes = 1 << 20}).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("--fast-lane-mib"));
  EXPECT_TRUE(other->Close().ok());
  EXPECT_TRUE(Eventually([&] { return third->CreateRegion({.bytes = 1 << 20}).ok(); }));
}

// Rows in what the engine exports; the ring that may name them is in region_.
class DeviceLaneServerTest : public FastLaneServerTest {
 protected:
  DeviceLaneServerTest() {
    options_.fast_lane_device_mib = 4;
    options_.fast_lane_session_mib = 4;
  }

  void OpenDevice() {
    Open();
    absl::StatusOr<client::DeviceRegion> device = session_->CreateDeviceRegion(64 << 10);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    data_ = HostExporter::Open(device_.ipc_handle);
    EXPECT_EQ(device_.size, kExportedMultiple);
    EXPECT_EQ(device_.device_uuid, "GPU-of-the-test");
  }
  v1::ForwardRequest PlaceThere(std::uint64_t id, std::int64_t rows) {
    v1::ForwardRequest request = MakeRequest(id, rows);
    std::memcpy(data_, request.hidden_states().data(), request.hidden_states().size());
    v1::RegionRows* where = request.mutable_region();
    where->set_handle(device_.handle);
    where->set_output_offset(static_cast<std::uint64_t>(rows) * kRowBytes);
    return request;
  }
  void ExpectAnswered(const v1::ForwardRequest& request) {
    EXPECT_EQ(std::memcmp(data_, data_ + request.region().output_offset(), request.region().output_offset()), 0);
  }
  bool AllFreed() {
    return FastLaneServerTest::AllFreed() && Eventually([&] { return engine_->exporter().bytes() == 0; }) &&
           Metric("expertd_device_region_bytes") == 0;
  }

  client::DeviceRegion device_;
  std::byte* data_ = nullptr;
};

TEST_F(DeviceLaneServerTest, UnaryCallsAndRingsNameRowsOnTheDeviceAndTheEngineIsToldSo) {
  OpenDevice();
  std::atomic<int> on_device = 0, on_host = 0;
  engine_->FailWhen([&](absl::Span<const Segment> segments) {
    for (const Segment& segment : segments) ++(segment.on_device ? on_device : on_host);
    return absl::OkStatus();
  });
  EXPECT_EQ(Metric("expertd_device_region_bytes"), kExportedMultiple);
  const v1::ForwardRequest unary = PlaceThere(1, 5);
  v1::ForwardResponse response;
  const grpc::Status status = Forward(unary, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(response.result().output().empty());
  ExpectAnswered(unary);
  v1::ForwardRequest ring = PlaceThere(2, 7);
  ring.set_return_routing(true);
  ASSERT_TRUE(Ring(ring).ok());
  response = Heard();
  ASSERT_TRUE(response.has_result()) << response.error().message();
  EXPECT_EQ(response.result().routing().topk_ids().size(), 7u * 2 * 4);
  ExpectAnswered(ring);
  EXPECT_EQ(on_device, 2);
  ExpectServes(3);
  EXPECT_EQ(on_host, 1);
}

TEST_F(DeviceLaneServerTest, WhatIsWrongIsRefusedByName) {
  OpenDevice();
  const auto with = [&](auto change) {
    v1::ForwardRequest request = PlaceThere(9, 2);
    change(request);
    return request;
  };
  const struct {
    v1::ForwardRequest request;
    const char* message;
  } cases[] = {
      {with([](auto& r) { r.mutable_region()->set_input_offset(kExportedMultiple); }),
       "end beyond the region (2097152"},
      {with([](auto& r) { r.mutable_region()->set_output_offset(~std::uint64_t{63}); }), "end beyond the region"},
      {with([](auto& r) { r.mutable_region()->set_output_offset(32); }), "region.output_offset: 32 is not a multiple"},
      {with([](auto& r) { r.mutable_region()->set_output_offset(0); }), "overlap the input"},
      {with([](auto& r) { r.set_output_dtype(v1::DTYPE_F8_E4M3); }), "output_dtype: rows in a region are bf16 or f32"},
  };
  for (const auto& c : cases) {
    v1::ForwardResponse response;
    const grpc::Status status = Forward(c.request, &response);
    EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(c.message));
    ASSERT_TRUE(Ring(c.request).ok());
    EXPECT_THAT(Heard().error().message(), HasSubstr(c.message));
  }
  const v1::ForwardRequest request = PlaceThere(10, 2);
  EXPECT_TRUE(session_->Close().ok());
  v1::ForwardResponse response;
  EXPECT_EQ(Forward(request, &response).error_code(), grpc::NOT_FOUND);
  EXPECT_TRUE(AllFreed());
  ExpectServes(11);
}

TEST_F(DeviceLaneServerTest, MemoryInUseOutlivesTheSession) {
  OpenDevice();
  engine_->Close();
  const v1::ForwardRequest request = PlaceThere(1, 2);
  v1::ForwardResponse response;
  grpc::Status status;
  std::thread caller([&] { status = Forward(request, &response); });
  ASSERT_TRUE(engine_->WaitForBatches(1));
  EXPECT_TRUE(session_->Close().ok());
  EXPECT_EQ(Metric("expertd_device_region_bytes"), kExportedMultiple);
  EXPECT_EQ(engine_->exporter().bytes(), kExportedMultiple);
  engine_->Open();
  caller.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(AllFreed());
}

TEST_F(DeviceLaneServerTest, IsOffUnlessAskedForAndNotOfferedByAnEngineWithoutSuchMemory) {
  const auto features = [&] {
    grpc::ClientContext context;
    v1::GetServerInfoResponse info;
    EXPECT_TRUE(stub_->GetServerInfo(&context, {}, &info).ok());
    return std::vector<std::string>(info.features().begin(), info.features().end());
  };
  Start();
  EXPECT_THAT(features(), ::testing::Contains("fast_lane_device"));
  server_.reset();
  options_.fast_lane_device_mib = 0;
  Start();
  EXPECT_THAT(features(), ::testing::Not(::testing::Contains("fast_lane_device")));
  session_ = SharedSession::Open(channel_);
  EXPECT_EQ(session_->CreateDeviceRegion(1).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(session_->CreateRegion({.bytes = 1}).ok()) << "the session goes on";
  session_.reset();
  server_.reset();
  engine_ = nullptr;
  options_.fast_lane_device_mib = 4;
  Start(MakeNullEngine({}), TinyPlan(), /*load=*/true);
  EXPECT_THAT(features(), ::testing::Not(::testing::Contains("fast_lane_device")));
  session_ = SharedSession::Open(channel_);
  const absl::Status none = session_->CreateDeviceRegion(1).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(none.message()), HasSubstr("computes in host memory"));
  EXPECT_EQ(Metric("expertd_device_region_bytes"), 0);
}

TEST_F(FastLaneServerTest, APeerThatIsKilledInMidBatchLeavesNothingBehind) {
  Start();
  engine_->Close();
  auto peer = Process::Start({absl::StrCat(EXPERTD_BIN_DIR, "/lane_peer"), server_->addresses().service});
  ASSERT_TRUE(peer.ok()) << peer.status();
  ASSERT_TRUE(engine_->WaitForBatches(1));
  EXPECT_GT(Metric("expertd_region_bytes"), 0);
  const v1::ForwardRequest neighbour = MakeRequest(2, 16);
  v1::ForwardResponse answer;
  grpc::Status status;
  std::thread caller([&] { status = Forward(neighbour, &answer); });
  (*peer)->Signal(SIGKILL);
  EXPECT_EQ((*peer)->Wait(kLong), 128 + SIGKILL);
  engine_->Open();
  caller.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(answer.result().output(), neighbour.hidden_states());
  EXPECT_TRUE(AllFreed());
}

}  // namespace
}  // namespace expertd::testing
