#include "server/lane/handoff.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace expertd {
namespace {

// Peers that connect and say nothing: beyond so many the oldest is dropped.
constexpr std::size_t kMaxConnections = 64;

absl::Status CannotBind(const std::string& path, const char* step) {
  return absl::UnavailableError(absl::StrCat("--fast-lane-socket ", path, ": ", step, ": ", std::strerror(errno)));
}

Descriptor NewSocket() { return Descriptor(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)); }

const sockaddr* AsSockaddr(const sockaddr_un& address) { return reinterpret_cast<const sockaddr*>(&address); }

// A socket file that a dead process has left behind; nothing else is ever removed.
bool IsStale(const sockaddr_un& address) {
  struct stat info = {};
  if (lstat(address.sun_path, &info) != 0 || !S_ISSOCK(info.st_mode)) return false;
  const Descriptor probe = NewSocket();
  return connect(probe.get(), AsSockaddr(address), sizeof(address)) != 0 && errno == ECONNREFUSED;
}

// Sends `text` and the descriptors; a peer that cannot take them at once is no loss.
void Send(int connection, absl::string_view text, const std::vector<int>& descriptors) {
  iovec part = {const_cast<char*>(text.data()), text.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    const std::size_t bytes = descriptors.size() * sizeof(int);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(bytes);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(bytes);
    std::memcpy(CMSG_DATA(header), descriptors.data(), bytes);
  }
  sendmsg(connection, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Handoff>> Handoff::Listen(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("--fast-lane-socket ", path, ": ", path.size(),
                                                   " bytes, must be 1..", sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  Descriptor listener = NewSocket();
  Descriptor events(epoll_create1(EPOLL_CLOEXEC));
  if (!listener || !events) return CannotBind(path, "socket");
  if (IsStale(address)) unlink(path.c_str());
  if (bind(listener.get(), AsSockaddr(address), sizeof(address)) != 0) return CannotBind(path, "bind");
  // Nobody can connect before listen.
  if (chmod(path.c_str(), S_IRUSR | S_IWUSR) != 0) return CannotBind(path, "chmod");
  if (listen(listener.get(), kMaxConnections) != 0) return CannotBind(path, "listen");
  return std::unique_ptr<Handoff>(new Handoff(path, std::move(listener), std::move(events)));
}

Handoff::Handoff(std::string path, Descriptor listener, Descriptor events)
    : path_(std::move(path)), listener_(std::move(listener)), events_(std::move(events)) {
  WatchDescriptor(events_.get(), listener_.get(), EPOLLET);
}

Handoff::~Handoff() { unlink(path_.c_str()); }

std::string Handoff::Offer(Parcel parcel) {
  std::string token(kTokenBytes, '\0');
  FillRandom(token.data(), token.size());
  MutexLock lock(mutex_);
  parcels_.emplace(token, std::move(parcel));
  return token;
}

void Handoff::Withdraw(const std::string& token) {
  Parcel last;  // destroyed outside the lock
  MutexLock lock(mutex_);
  const auto found = parcels_.find(token);
  if (found == parcels_.end()) return;
  last = std::move(found->second);
  parcels_.erase(found);
}

void Handoff::Serve() {
  epoll_event events[16];
  const int count = epoll_wait(events_.get(), events, 16, 0);
  // Connections first: Accept may drop one that was told about here, and its number may be given to another.
  for (int i = 0; i < count; ++i) {
    if (events[i].data.fd != listener_.get()) Answer(events[i].data.fd);
  }
  for (int i = 0; i < count; ++i) {
    if (events[i].data.fd == listener_.get()) Accept();
  }
}

// All that wait: the listener is edge-triggered, so that a process without free descriptors is not kept busy by a peer
// that it cannot accept.
void Handoff::Accept() {
  while (true) {
    Descriptor connection(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!connection) return;
    WatchDescriptor(events_.get(), connection.get());
    connections_.push_back(std::move(connection));
    if (connections_.size() > kMaxConnections) connections_.pop_front();
  }
}

void Handoff::Answer(int connection) {
  const auto found = std::find_if(connections_.begin(), connections_.end(),
                                  [connection](const Descriptor& open) { return open.get() == connection; });
  if (found == connections_.end()) return;
  const Descriptor closed = std::move(*found);
  connections_.erase(found);
  // One byte more than a token, so that what is longer is not taken for one.
  std::string token(kTokenBytes + 1, '\0');
  const ssize_t size = recv(connection, token.data(), token.size(), MSG_DONTWAIT);
  token.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
  const absl::StatusOr<Parcel> parcel = Redeem(token);
  if (!parcel.ok()) return Send(connection, parcel.status().message(), {});
  std::vector<int> descriptors = {parcel->region->descriptor()};
  if (parcel->ring != nullptr) descriptors.push_back(parcel->ring->doorbell());
  Send(connection, "ok", descriptors);
}

absl::StatusOr<Handoff::Parcel> Handoff::Redeem(const std::string& token) {
  if (token.size() != kTokenBytes) {
    return absl::InvalidArgumentError(absl::StrCat("token: must be one message of ", kTokenBytes, " bytes"));
  }
  MutexLock lock(mutex_);
  const auto found = parcels_.find(token);
  if (found == parcels_.end())
    return absl::NotFoundError("token: unknown, used before, or of a session that has ended");
  Parcel parcel = std::move(found->second);
  parcels_.erase(found);
  return parcel;
}

}  // namespace expertd
