#include "client/cpp/shared_region.h"

#include <expertd/v1/expertd.grpc.pb.h>
#include <grpcpp/client_context.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/messages.h"

namespace expertd::client {
namespace {

constexpr int kMaxDescriptors = 2;

absl::Status SocketError(const std::string& path, const char* step) {
  return absl::UnavailableError(absl::StrCat("socket ", path, ": ", step, ": ", std::strerror(errno)));
}

// The descriptors of a received message.
std::vector<int> DescriptorsOf(msghdr& message) {
  std::vector<int> descriptors;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    descriptors.resize((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    std::memcpy(descriptors.data(), CMSG_DATA(header), descriptors.size() * sizeof(int));
  }
  return descriptors;
}

absl::StatusOr<std::vector<int>> Exchange(int socket, const std::string& path, absl::string_view token) {
  if (send(socket, token.data(), token.size(), MSG_NOSIGNAL) < 0) return SocketError(path, "send");
  char text[256];
  iovec part = {text, sizeof(text)};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  if (size < 0) return SocketError(path, "recvmsg");
  std::vector<int> descriptors = DescriptorsOf(message);
  if (!descriptors.empty()) return descriptors;
  return absl::PermissionDeniedError(
      absl::StrCat("socket ", path, ": ", absl::string_view(text, static_cast<std::size_t>(size))));
}

}  // namespace

absl::StatusOr<std::vector<int>> FetchDescriptors(const std::string& socket_path, absl::string_view token) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (socket_path.size() >= sizeof(address.sun_path)) {
    return absl::UnavailableError(absl::StrCat("socket ", socket_path, ": the path is too long"));
  }
  std::memcpy(address.sun_path, socket_path.data(), socket_path.size());
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return SocketError(socket_path, "socket");
  absl::StatusOr<std::vector<int>> descriptors =
      connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0
          ? Exchange(fd, socket_path, token)
          : SocketError(socket_path, "connect");
  close(fd);
  return descriptors;
}

SharedRegion::~SharedRegion() {
  if (data_ != nullptr) munmap(data_, size_);
  if (doorbell_ >= 0) close(doorbell_);
}

class SharedSession::Call {
 public:
  explicit Call(const std::shared_ptr<grpc::Channel>& channel)
      : stub_(v1::Expertd::NewStub(channel)), stream_(stub_->Session(&context_)) {}

  absl::StatusOr<v1::RegionCreated> Create(const v1::CreateRegion& wish) {
    v1::SessionRequest request;
    *request.mutable_create_region() = wish;
    v1::SessionResponse response;
    if (finished_) return absl::UnavailableError("session: closed");
    if (!stream_->Write(request) || !stream_->Read(&response)) {
      const absl::Status status = Finish();
      return status.ok() ? absl::UnavailableError("session: the server has ended it") : status;
    }
    if (response.has_error()) {
      return absl::Status(static_cast<absl::StatusCode>(response.error().code()), response.error().message());
    }
    return response.region_created();
  }

  absl::Status Finish() {
    if (!finished_) {
      finished_ = true;
      stream_->WritesDone();
      status_ = FromGrpc(stream_->Finish());
    }
    return status_;
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<v1::Expertd::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>> stream_;
  bool finished_ = false;
  absl::Status status_;
};

SharedSession::SharedSession(std::unique_ptr<Call> call) : call_(std::move(call)) {}
SharedSession::~SharedSession() { call_->Finish().IgnoreError(); }

std::unique_ptr<SharedSession> SharedSession::Open(const std::shared_ptr<grpc::Channel>& channel) {
  return std::unique_ptr<SharedSession>(new SharedSession(std::make_unique<Call>(channel)));
}

absl::Status SharedSession::Close() { return call_->Finish(); }

absl::StatusOr<DeviceRegion> SharedSession::CreateDeviceRegion(std::uint64_t bytes) {
  v1::CreateRegion wish;
  wish.set_memory(v1::CreateRegion::MEMORY_DEVICE);
  wish.set_bytes(bytes);
  const absl::StatusOr<v1::RegionCreated> created = call_->Create(wish);
  if (!created.ok()) return created.status();
  return DeviceRegion{created->handle(), created->bytes(), created->ipc_handle(), created->device_uuid()};
}

absl::StatusOr<std::unique_ptr<SharedRegion>> SharedSession::CreateRegion(const RegionOptions& options) {
  v1::CreateRegion wish;
  wish.set_memory(v1::CreateRegion::MEMORY_HOST);
  wish.set_bytes(options.bytes);
  if (options.ring_slots > 0) {
    wish.set_ring_slots(options.ring_slots);
    wish.set_slot_bytes(options.slot_bytes);
  }
  const absl::StatusOr<v1::RegionCreated> created = call_->Create(wish);
  if (!created.ok()) return created.status();
  absl::StatusOr<std::vector<int>> descriptors = FetchDescriptors(created->socket(), created->token());
  if (!descriptors.ok()) return descriptors.status();

  std::unique_ptr<SharedRegion> region(new SharedRegion);
  const int file = (*descriptors)[0];
  region->doorbell_ = descriptors->size() > 1 ? (*descriptors)[1] : -1;
  void* data = mmap(nullptr, created->bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
  close(file);
  if (data == MAP_FAILED) return absl::UnavailableError(absl::StrCat("region: mmap: ", std::strerror(errno)));
  region->data_ = static_cast<std::byte*>(data);
  region->size_ = created->bytes();
  region->rows_offset_ = created->rows_offset();
  region->handle_ = created->handle();
  if (options.ring_slots > 0) {
    absl::StatusOr<RingClient> ring = RingClient::Attach(region->data_, region->size_, region->doorbell_, options.spin);
    if (!ring.ok()) return ring.status();
    region->ring_ = *std::move(ring);
  }
  return region;
}

}  // namespace expertd::client
