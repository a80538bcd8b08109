// The socket that hands descriptors out, and the limits of a session.
#include "server/lane/handoff.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/lane/fast_lane.h"
#include "tests/unit/lane/exporting_engine.h"

namespace expertd {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string SocketPath(const char* name) { return absl::StrCat(::testing::TempDir(), "/", name, ".", getpid()); }

Descriptor Connect(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  Descriptor peer(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  EXPECT_EQ(connect(peer.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  return peer;
}

// What came back, and how many descriptors, which are closed.
std::pair<std::string, int> Receive(int peer) {
  char text[256];
  iovec part = {text, sizeof(text)};
  alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t size = recvmsg(peer, &message, MSG_CMSG_CLOEXEC);
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  const int count = header ? static_cast<int>((header->cmsg_len - CMSG_LEN(0)) / sizeof(int)) : 0;
  for (int i = 0; i < count; ++i) {
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(fd));
    close(fd);
  }
  return {std::string(text, size > 0 ? static_cast<std::size_t>(size) : 0), count};
}

std::pair<std::string, int> Redeem(const std::string& path, const std::string& token) {
  const Descriptor peer = Connect(path);
  EXPECT_EQ(send(peer.get(), token.data(), token.size(), 0), static_cast<ssize_t>(token.size()));
  return Receive(peer.get());
}

class FastLaneTest : public ::testing::Test {
 protected:
  void Start(FastLaneOptions options) {
    options.socket_path = path_;
    absl::StatusOr<std::unique_ptr<FastLane>> lane = FastLane::Start(options, engine_, regions_);
    ASSERT_TRUE(lane.ok()) << lane.status();
    lane_ = *std::move(lane);
  }

  const std::string path_ = SocketPath("lane");
  testing::ExportingEngine engine_;
  RegionTable regions_;
  std::unique_ptr<FastLane> lane_;
};

const FastLaneOptions kRoomy = {
    .max_bytes = 1 << 20, .max_bytes_per_session = 1 << 20, .max_regions_per_session = 4, .max_ring_slots = 8};

TEST_F(FastLaneTest, ATokenWorksOnceAndEndsWithItsSession) {
  Start(kRoomy);
  struct stat info = {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  auto session = std::make_unique<LaneSession>(*lane_);
  const absl::StatusOr<NewRegion> plain = session->CreateRegion({.bytes = 4096});
  const absl::StatusOr<NewRegion> ringed = session->CreateRegion({.bytes = 4096, .ring_slots = 4, .slot_bytes = 256});
  const absl::StatusOr<NewRegion> late = session->CreateRegion({.bytes = 4096});
  ASSERT_TRUE(plain.ok() && ringed.ok() && late.ok());
  EXPECT_EQ(Redeem(path_, plain->token), std::pair(std::string("ok"), 1));
  EXPECT_THAT(Redeem(path_, plain->token).first, StartsWith("token: unknown"));
  EXPECT_EQ(Redeem(path_, ringed->token), std::pair(std::string("ok"), 2));
  session.reset();
  EXPECT_THAT(Redeem(path_, late->token).first, StartsWith("token: unknown"));
  for (const std::string& rubbish : {std::string("x"), std::string(33, 'x'), std::string(5000, 'x')}) {
    EXPECT_THAT(Redeem(path_, rubbish).first, StartsWith("token: must be one message of 32 bytes"));
  }
}

TEST_F(FastLaneTest, PeersThatSayNothingAreDroppedAndKeepNobodyOut) {
  Start(kRoomy);
  std::vector<Descriptor> silent;
  for (int i = 0; i < 80; ++i) silent.push_back(Connect(path_));
  LaneSession session(*lane_);
  const absl::StatusOr<NewRegion> made = session.CreateRegion({.bytes = 64});
  ASSERT_TRUE(made.ok());
  EXPECT_EQ(Redeem(path_, made->token).first, "ok");
  EXPECT_EQ(Receive(silent.front().get()).first, "");  // closed
}

TEST_F(FastLaneTest, SessionsAreBounded) {
  FastLaneOptions options = kRoomy;
  options.max_bytes_per_session = 10'000;
  Start(options);
  LaneSession session(*lane_);
  const struct {
    RegionWish wish;
    absl::StatusCode code;
    const char* message;
  } refused[] = {
      {{}, absl::StatusCode::kInvalidArgument, "create_region.bytes: 0, and no ring is asked for"},
      {{.bytes = 10'001}, absl::StatusCode::kResourceExhausted, "--fast-lane-session-mib"},
      {{.bytes = ~std::uint64_t{0}}, absl::StatusCode::kResourceExhausted, "--fast-lane-session-mib"},
      {{.bytes = 9'000, .ring_slots = 2, .slot_bytes = 256}, absl::StatusCode::kResourceExhausted, "1344 of a ring"},
      {{.ring_slots = 3, .slot_bytes = 256}, absl::StatusCode::kInvalidArgument, "ring_slots: 3 is not a power of two"},
      {{.ring_slots = 512, .slot_bytes = 256}, absl::StatusCode::kInvalidArgument, "2..256"},
      {{.ring_slots = 16, .slot_bytes = 256}, absl::StatusCode::kInvalidArgument, "--max-in-flight-per-stream 8"},
      {{.ring_slots = 2, .slot_bytes = 0}, absl::StatusCode::kInvalidArgument, "slot_bytes: 0 is not a multiple of 64"},
      {{.ring_slots = 2, .slot_bytes = 300}, absl::StatusCode::kInvalidArgument, "slot_bytes: 300"},
  };
  for (const auto& c : refused) {
    const absl::Status status = session.CreateRegion(c.wish).status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(session.CreateRegion({.bytes = 64}).ok());
  EXPECT_THAT(std::string(session.CreateRegion({.bytes = 64}).status().message()), HasSubstr("--fast-lane-regions 4"));
}

TEST_F(FastLaneTest, DeviceMemoryIsOffUnlessAskedForAndBoundedWhenOn) {
  Start(kRoomy);
  const absl::Status off = LaneSession(*lane_).CreateRegion({.bytes = 64, .on_device = true}).status();
  EXPECT_EQ(off.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(off.message()), HasSubstr("create_region.memory: this server offers no device memory"));
  lane_.reset();

  FastLaneOptions options = kRoomy;
  options.max_device_bytes = 3 * kExportedMultiple;
  options.max_bytes_per_session = 2 * kExportedMultiple;
  Start(options);
  LaneSession session(*lane_), other(*lane_);
  const struct {
    RegionWish wish;
    absl::StatusCode code;
    const char* message;
  } refused[] = {
      {{.bytes = 0, .on_device = true}, absl::StatusCode::kInvalidArgument, "create_region.bytes: 0"},
      {{.bytes = 64, .on_device = true, .ring_slots = 4, .slot_bytes = 256},
       absl::StatusCode::kInvalidArgument,
       "create_region.ring_slots: 4, must be 0 in device memory"},
      {{.on_device = true, .ring_slots = 4, .slot_bytes = 256},
       absl::StatusCode::kInvalidArgument,
       "create_region.ring_slots: 4, must be 0 in device memory"},
      {{.bytes = 2 * kExportedMultiple + 1, .on_device = true},
       absl::StatusCode::kResourceExhausted,
       "--fast-lane-session-mib"},
      {{.bytes = ~std::uint64_t{0}, .on_device = true},
       absl::StatusCode::kResourceExhausted,
       "--fast-lane-session-mib"},
  };
  for (const auto& c : refused) {
    const absl::Status status = session.CreateRegion(c.wish).status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
  const absl::StatusOr<NewRegion> made = session.CreateRegion({.bytes = 64, .on_device = true});
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->device_uuid, "GPU-of-the-test");
  EXPECT_EQ(made->token + made->socket, "") << "there is no descriptor to fetch";
  EXPECT_TRUE(regions_.Find(made->region->handle()).ok());
  EXPECT_THAT(std::string(session.CreateRegion({.bytes = kExportedMultiple + 1, .on_device = true}).status().message()),
              HasSubstr("in whole 2 MiB, do not fit beside the 2097152 of the session"));
  ASSERT_TRUE(other.CreateRegion({.bytes = 2 * kExportedMultiple, .on_device = true}).ok());
  EXPECT_THAT(std::string(session.CreateRegion({.bytes = 64, .on_device = true}).status().message()),
              HasSubstr("--fast-lane-device-mib"));
  EXPECT_EQ(lane_->device_bytes_in_use(), 3 * kExportedMultiple);
  EXPECT_EQ(lane_->bytes_in_use(), 0u);
}

TEST(HandoffTest, ASocketInUseIsLeftAloneAndADeadOneIsReplaced) {
  const std::string path = SocketPath("handoff");
  {
    const absl::StatusOr<std::unique_ptr<Handoff>> first = Handoff::Listen(path);
    ASSERT_TRUE(first.ok()) << first.status();
    EXPECT_EQ(Handoff::Listen(path).status().code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_NE(access(path.c_str(), F_OK), 0);
  {  // what a killed server leaves behind
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    const Descriptor dead(socket(AF_UNIX, SOCK_SEQPACKET, 0));
    ASSERT_EQ(bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }
  EXPECT_TRUE(Handoff::Listen(path).ok());
  std::ofstream(path) << "a file of somebody's";
  EXPECT_EQ(Handoff::Listen(path).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(access(path.c_str(), F_OK), 0);
  unlink(path.c_str());
  EXPECT_EQ(Handoff::Listen(std::string(200, 'p')).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace expertd
