// Regions in device memory, between a real server and callers in other processes: this one, and one that dies.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client/cpp/client.h"
#include "client/cpp/program/bench/http_get.h"
#include "client/cpp/program/bench/payload.h"
#include "client/cpp/program/bench/server_metrics.h"
#include "client/cpp/program/layers.h"
#include "tests/gpu/gpu_test.h"
#include "tests/integration/server_process.h"
#include "tests/support/mapped_region.h"

namespace expertd::testing {
namespace {

using client::SharedSession;
using ::testing::HasSubstr;

constexpr std::uint64_t kMiB = 1 << 20;
constexpr char kRegionBytes[] = "expertd_device_region_bytes";
constexpr char kFreeBytes[] = "expertd_device_memory_bytes{kind=\"free\"}";

// Where the programs are: another place than where they were built, when they were packed.
std::string BinDir() {
  const char* const packed = std::getenv("EXPERTD_BIN_DIR");
  return packed != nullptr ? packed : EXPERTD_BIN_DIR;
}

// A session with a region on the device, mapped, and a ring.
struct Caller {
  std::unique_ptr<SharedSession> session;
  std::unique_ptr<client::SharedRegion> host;
  client::DeviceRegion device;
  std::unique_ptr<MappedRegion> memory;  // closed before the session ends

  absl::Status Open(const std::shared_ptr<grpc::Channel>& channel, std::uint64_t bytes) {
    session = SharedSession::Open(channel);
    auto ring = session->CreateRegion({.ring_slots = 4, .slot_bytes = 64 << 10});
    if (!ring.ok()) return ring.status();
    host = *std::move(ring);
    const auto made = session->CreateDeviceRegion(bytes);
    if (!made.ok()) return made.status();
    device = *made;
    auto mapped = MappedRegion::Open(device);
    if (!mapped.ok()) return mapped.status();
    memory = *std::move(mapped);
    return absl::OkStatus();
  }
};

class DeviceLaneTest : public GpuTest {
 protected:
  // One server for all tests: what one leaves behind, the next would meet.
  static void SetUpTestSuite() {
    if (!HasDevice()) return;
    folder_ = absl::StrCat(std::filesystem::temp_directory_path().string(), "/device_lane.", getpid());
    const Outcome synth =
        RunToEnd({BinDir() + "/expertd", "synth"},
                 {"--like", "olmoe", "--experts", "16", "--intermediate", "256", "--layers", "1", "--out", folder_});
    ASSERT_EQ(synth.code, 0) << synth.err;
    auto server = ServerProcess::Start(BinDir(), {"--checkpoint", folder_, "--device", "cuda:0", "--fast-lane-socket",
                                                  folder_ + "/lane", "--fast-lane-device-mib", "64"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = server->release();
  }
  static void TearDownTestSuite() {
    delete server_;
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    ASSERT_NE(server_, nullptr);
    auto client = client::Client::Connect({.endpoint = server_->address()});
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    const auto layer = client::ChooseLayer(*client_, {});
    ASSERT_TRUE(layer.ok()) << layer.status();
    layer_ = *layer;
  }

  static double Metric(const std::string& series) {
    const auto url = client::ParseHttpUrl(server_->metrics_address());
    const auto page = client::HttpGet(*url, std::chrono::seconds(10));
    EXPECT_TRUE(page.ok()) << page.status();
    return page.ok() ? client::ParseMetrics(*page)[series] : -1;
  }
  template <typename Holds>
  static bool Eventually(const Holds& holds) {
    for (int tries = 0; tries < 200; ++tries) {
      if (holds()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return false;
  }

  std::string Inline(const client::Request& request) const {
    const auto answer = client_->Forward(request);
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? answer->OutputString() : "";
  }
  // The same request with its rows at the region's beginning and its outputs 1 MiB behind.
  static v1::ForwardRequest Place(const client::Request& request, Caller& caller) {
    v1::ForwardRequest head = request.head;
    head.mutable_region()->set_handle(caller.device.handle);
    head.mutable_region()->set_output_offset(4 * kMiB);
    const absl::Status status = caller.memory->Write(0, request.hidden_states.begin(), request.hidden_states.size());
    EXPECT_TRUE(status.ok()) << status;
    return head;
  }
  static absl::StatusOr<v1::ForwardResponse> Ring(const v1::ForwardRequest& head, Caller& caller) {
    v1::StreamRequest message;
    *message.mutable_forward() = head;
    std::string answer;
    v1::ForwardResponse response;
    if (absl::Status s = caller.host->ring()->Send(message.SerializeAsString()); !s.ok()) return s;
    if (absl::Status s = caller.host->ring()->Receive(kPatience, &answer); !s.ok()) return s;
    if (!response.ParseFromString(answer)) return absl::InternalError("not decodable");
    if (absl::Status s = client::ErrorOf(response); !s.ok()) return s;
    return response;
  }
  static std::string Bytes(Caller& caller, std::uint64_t offset, std::size_t bytes) {
    std::string out(bytes, '\0');
    const absl::Status status = caller.memory->Read(offset, out.data(), bytes);
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }
  static bool IsZero(Caller& caller, std::size_t bytes) {
    return Bytes(caller, 0, bytes).find_first_not_of('\0') == std::string::npos;
  }
  void ExpectRightBits() {
    const client::Request request = client::RandomRequest(layer_, 16, /*pre_routed=*/false, /*seed=*/77);
    Caller caller;
    EXPERTD_ASSERT_OK(caller.Open(client_->channel(), 8 * kMiB));
    const auto answer = Ring(Place(request, caller), caller);
    ASSERT_TRUE(answer.ok()) << answer.status();
    const std::string bits = Inline(request);
    EXPECT_EQ(Bytes(caller, 4 * kMiB, bits.size()), bits);
  }

  static inline std::string folder_;
  static inline ServerProcess* server_ = nullptr;
  std::unique_ptr<client::Client> client_;
  v1::Layer layer_;
};

TEST_F(DeviceLaneTest, TheSameBitsAsRowsInTheRequestAndNoByteBeside) {
  Caller caller;
  EXPERTD_ASSERT_OK(caller.Open(client_->channel(), 8 * kMiB));
  for (const std::int64_t rows : {1, 5, 16, 300}) {
    for (const bool pre_routed : {false, true}) {
      for (const v1::DType out : {v1::DTYPE_BF16, v1::DTYPE_F32}) {
        SCOPED_TRACE(absl::StrCat(rows, " rows, ", pre_routed ? "pre-routed, " : "", v1::DType_Name(out)));
        client::Request request = client::RandomRequest(layer_, rows, pre_routed, static_cast<std::uint64_t>(rows));
        request.head.set_output_dtype(out);
        request.head.set_return_routing(true);
        const auto plain = client_->Forward(request);
        ASSERT_TRUE(plain.ok()) << plain.status();
        const std::string bits = plain->OutputString();
        for (const bool ring : {false, true}) {
          EXPERTD_ASSERT_OK(caller.memory->Fill(0xa5));
          const v1::ForwardRequest head = Place(request, caller);
          v1::ForwardResponse response;
          if (ring) {
            const auto answer = Ring(head, caller);
            ASSERT_TRUE(answer.ok()) << answer.status();
            response = *answer;
          } else {
            const auto answer = client_->Forward({.head = head, .hidden_states = {}});
            ASSERT_TRUE(answer.ok()) << answer.status();
            EXPECT_EQ(answer->output_bytes, 0u);
            response = answer->response;
          }
          EXPECT_EQ(response.result().routing().topk_ids(), plain->result().routing().topk_ids());
          EXPECT_EQ(Bytes(caller, 4 * kMiB, bits.size()), bits) << (ring ? "ring" : "unary");
          EXPECT_EQ(Bytes(caller, 4 * kMiB - 64, 64), std::string(64, '\xa5'));
          EXPECT_EQ(Bytes(caller, 4 * kMiB + bits.size(), 64), std::string(64, '\xa5'));
          EXPECT_EQ(
              Bytes(caller, 0, request.hidden_states.size()),
              std::string(reinterpret_cast<const char*>(request.hidden_states.begin()), request.hidden_states.size()));
        }
      }
    }
  }
}

TEST_F(DeviceLaneTest, FreshMemoryIsZeroAndWhatDoesNotFitIsRefusedByName) {
  Caller caller;
  EXPERTD_ASSERT_OK(caller.Open(client_->channel(), 8 * kMiB));
  EXPECT_TRUE(IsZero(caller, 8 * kMiB));
  const client::Request request = client::RandomRequest(layer_, 16, /*pre_routed=*/false, /*seed=*/1);
  const std::uint64_t bytes = request.hidden_states.size();
  const struct {
    std::uint64_t input, output;
    const char* message;
  } cases[] = {{8 * kMiB, 0, "region.input_offset: 65536 bytes from 8388608 end beyond the region (8388608 bytes)"},
               {0, 8 * kMiB - bytes + 64, "region.output_offset: 65536 bytes from"},
               {0, bytes - 64, "overlap the input"},
               {32, 4 * kMiB, "region.input_offset: 32 is not a multiple of 64"},
               {~std::uint64_t{63}, 0, "end beyond the region"}};
  for (const auto& c : cases) {
    v1::ForwardRequest head = Place(request, caller);
    head.mutable_region()->set_input_offset(c.input);
    head.mutable_region()->set_output_offset(c.output);
    const absl::Status status = Ring(head, caller).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
  v1::ForwardRequest last = Place(request, caller);
  last.mutable_region()->set_output_offset(8 * kMiB - bytes);
  EXPECT_TRUE(Ring(last, caller).ok());
  EXPECT_EQ(Bytes(caller, 8 * kMiB - bytes, bytes), Inline(request));
  EXPECT_EQ(caller.session->CreateDeviceRegion(64 * kMiB).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(DeviceLaneTest, ACallerThatChangesItsRowsInMidBatchSpoilsNobodyElses) {
  Caller vandal;
  EXPERTD_ASSERT_OK(vandal.Open(client_->channel(), 8 * kMiB));
  const client::Request victim = client::RandomRequest(layer_, 16, /*pre_routed=*/false, /*seed=*/2);
  const client::Request rows = client::RandomRequest(layer_, 512, /*pre_routed=*/false, /*seed=*/3);
  const std::string bits = Inline(victim);
  const v1::ForwardRequest head = Place(rows, vandal);
  std::atomic<bool> stop = false;
  std::thread scribbles([&] {
    for (unsigned char value = 0; !stop; value += 37) EXPECT_TRUE(vandal.memory->Fill(value).ok());
  });
  std::thread sends([&] {
    for (std::uint64_t id = 1; !stop; ++id) {
      v1::ForwardRequest next = head;
      next.set_request_id(id);
      EXPECT_TRUE(Ring(next, vandal).ok());
    }
  });
  int merged = 0;
  for (int i = 0; i < 300; ++i) {
    const auto answer = client_->Forward(victim);
    if (!answer.ok()) ADD_FAILURE() << answer.status();
    if (!answer.ok()) break;
    EXPECT_EQ(answer->OutputString(), bits) << i;
    merged += answer->result().batch_requests() > 1;
  }
  stop = true;
  scribbles.join();
  sends.join();
  RecordProperty("merged", merged);
  std::printf("%d of 300 requests shared a batch with the vandal's\n", merged);
}

TEST_F(DeviceLaneTest, TheSessionsEndGivesTheMemoryBack) {
  ASSERT_TRUE(Eventually([] { return Metric(kRegionBytes) == 0; }));
  Caller caller;
  EXPERTD_ASSERT_OK(caller.Open(client_->channel(), 48 * kMiB));
  EXPECT_EQ(Metric(kRegionBytes), 48 * kMiB);
  const double free = Metric(kFreeBytes);
  caller.memory.reset();
  EXPERTD_ASSERT_OK(caller.session->Close());
  EXPECT_TRUE(Eventually([] { return Metric(kRegionBytes) == 0; }));
  EXPECT_TRUE(Eventually([&] { return Metric(kFreeBytes) >= free + 48 * kMiB; })) << Metric(kFreeBytes) - free;
  ExpectRightBits();
}

TEST_F(DeviceLaneTest, ACallerKilledInMidBatchLeavesNothingBehind) {
  ASSERT_TRUE(Eventually([] { return Metric(kRegionBytes) == 0; }));
  const double free = Metric(kFreeBytes);
  auto peer = Process::Start({BinDir() + "/device_lane_peer", server_->address(), layer_.model(), "work"});
  ASSERT_TRUE(peer.ok()) << peer.status();
  ASSERT_TRUE((*peer)->WaitForLine("at work", kPatience)) << (*peer)->err();
  EXPECT_EQ(Metric(kRegionBytes), 32 * kMiB);
  const client::Request neighbour = client::RandomRequest(layer_, 16, /*pre_routed=*/false, /*seed=*/5);
  const std::string bits = Inline(neighbour);
  (*peer)->Signal(SIGKILL);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(Inline(neighbour), bits);
  EXPECT_EQ((*peer)->Wait(kPatience), 128 + SIGKILL) << (*peer)->err();
  EXPECT_TRUE(Eventually([] { return Metric(kRegionBytes) == 0 && Metric("expertd_rows_in_flight") == 0; }));
  // The region's 32 MiB and the peer's own context. Batches of new sizes leave graphs behind, a few MiB.
  EXPECT_TRUE(Eventually([&] { return Metric(kFreeBytes) > free - 8 * kMiB; }))
      << free - Metric(kFreeBytes) << " bytes less";
  ExpectRightBits();
}

// What CUDA calls undefined: the memory is freed while a caller still maps it. The caller must not reach what comes
// after.
TEST_F(DeviceLaneTest, ACallerThatOutstaysItsSessionReachesNobodysMemory) {
  auto peer = Process::Start({BinDir() + "/device_lane_peer", server_->address(), layer_.model(), "outstay"});
  ASSERT_TRUE(peer.ok()) << peer.status();
  ASSERT_TRUE((*peer)->WaitForLine("at work", kPatience)) << (*peer)->err();
  EXPECT_TRUE(Eventually([] { return Metric(kRegionBytes) == 0; }));
  Caller next;
  EXPERTD_ASSERT_OK(next.Open(client_->channel(), 32 * kMiB));
  EXPECT_TRUE(IsZero(next, 32 * kMiB));
  ExpectRightBits();
  EXPECT_TRUE(IsZero(next, 32 * kMiB));
  std::printf("the peer that outstayed its session: %s\n",
              (*peer)->Wait(std::chrono::milliseconds(0)) ? "ended" : "writes");
  (*peer)->Signal(SIGKILL);
  (*peer)->Wait(kPatience);
  ExpectRightBits();
}

}  // namespace
}  // namespace expertd::testing
