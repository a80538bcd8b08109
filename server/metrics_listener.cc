#include "server/metrics_listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <prometheus/text_serializer.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/listeners.h"

namespace expertd {
namespace {

constexpr std::chrono::seconds kScraperHas{5};
constexpr std::size_t kMaxRequestBytes = 8192;

struct AddressInfo {
  addrinfo* found = nullptr;
  ~AddressInfo() {
    if (found != nullptr) freeaddrinfo(found);
  }
};

// A listening socket, or -1 with errno.
int BindFirst(const addrinfo* candidates) {
  for (const addrinfo* info = candidates; info != nullptr; info = info->ai_next) {
    const int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));  // a restart need not wait for old connections
    if (bind(fd, info->ai_addr, info->ai_addrlen) == 0 && listen(fd, 16) == 0) return fd;
    const int error = errno;
    close(fd);
    errno = error;
  }
  return -1;
}

absl::StatusOr<int> ListenOn(const std::string& address) {
  const std::pair<std::string, std::string> parts = SplitHostPort(address);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  AddressInfo info;
  const char* host = parts.first.empty() ? nullptr : parts.first.c_str();
  if (const int error = getaddrinfo(host, parts.second.c_str(), &hints, &info.found); error != 0) {
    return CannotListen(address, gai_strerror(error));
  }
  const int fd = BindFirst(info.found);
  if (fd < 0) return CannotListen(address, std::strerror(errno));
  return fd;
}

int PortOf(int fd) {
  sockaddr_storage bound = {};
  socklen_t size = sizeof(bound);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size) != 0) return 0;
  return ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(bound).sin6_port
                                           : reinterpret_cast<const sockaddr_in&>(bound).sin_port);
}

void LimitWaits(int fd) {
  const timeval limit = {.tv_sec = kScraperHas.count(), .tv_usec = 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

// Up to the empty line that ends it; empty when it does not come in time, or is too long.
std::string ReadRequest(ByteStream& stream) {
  const auto deadline = std::chrono::steady_clock::now() + kScraperHas;
  std::string request;
  std::array<char, 2048> buffer;
  while (request.find("\r\n\r\n") == std::string::npos) {
    const std::size_t got = stream.Read(buffer.data(), buffer.size());
    if (got == 0 || request.size() + got > kMaxRequestBytes || std::chrono::steady_clock::now() > deadline) return "";
    request.append(buffer.data(), got);
  }
  return request;
}

std::string Response(absl::string_view status, absl::string_view body) {
  return absl::StrCat("HTTP/1.1 ", status, "\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n",
                      "Content-Length: ", body.size(), "\r\nConnection: close\r\n\r\n", body);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(
    const std::string& address, std::shared_ptr<const CertificateStore> certificates, const Metrics& metrics) {
  const absl::StatusOr<int> fd = ListenOn(address);
  if (!fd.ok()) return fd.status();
  return std::unique_ptr<MetricsListener>(
      new MetricsListener(*fd, WithPort(address, PortOf(*fd)), std::move(certificates), metrics));
}

MetricsListener::MetricsListener(int listen_fd, std::string address,
                                 std::shared_ptr<const CertificateStore> certificates, const Metrics& metrics)
    : listen_fd_(listen_fd),
      stop_fd_(eventfd(0, EFD_CLOEXEC)),
      address_(std::move(address)),
      collectables_(metrics.collectables()),
      tls_(certificates ? std::make_unique<TlsAcceptor>(std::move(certificates)) : nullptr),
      thread_([this] { Run(); }) {}

MetricsListener::~MetricsListener() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    if (connection_fd_ >= 0) shutdown(connection_fd_, SHUT_RDWR);
  }
  eventfd_write(stop_fd_, 1);
  thread_.join();
  close(stop_fd_);
  close(listen_fd_);
}

void MetricsListener::Run() {
  pollfd watched[] = {{listen_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
  while (true) {
    if (poll(watched, 2, -1) < 0 && errno != EINTR) return;
    if (watched[1].revents != 0) return;
    const int fd = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) {
      // Out of descriptors: the connection stays in the queue, and poll would say so again at once.
      if (errno == EMFILE || errno == ENFILE) poll(watched + 1, 1, 100);
      continue;
    }
    {
      MutexLock lock(mutex_);
      if (!stopping_) connection_fd_ = fd;
    }
    LimitWaits(fd);
    Serve(fd);
    {
      MutexLock lock(mutex_);
      connection_fd_ = -1;
    }
    close(fd);
  }
}

void MetricsListener::Serve(int fd) {
  const std::unique_ptr<ByteStream> stream = tls_ ? tls_->Accept(fd) : PlainStream(fd);
  if (stream == nullptr) return;
  const std::string request = ReadRequest(*stream);
  if (!request.empty()) stream->Write(Answer(request));
}

std::string MetricsListener::Answer(const std::string& request) const {
  const std::vector<absl::string_view> words =
      absl::StrSplit(absl::string_view(request).substr(0, request.find("\r\n")), ' ');
  if (words.size() != 3 || !absl::StartsWith(words[2], "HTTP/1.")) return Response("400 Bad Request", "");
  if (words[0] != "GET") return Response("405 Method Not Allowed", "GET\n");
  if (words[1].substr(0, words[1].find('?')) != "/metrics") return Response("404 Not Found", "/metrics\n");
  std::vector<prometheus::MetricFamily> families;
  for (const auto& weak : collectables_) {
    if (const auto collectable = weak.lock()) {
      for (prometheus::MetricFamily& family : collectable->Collect()) families.push_back(std::move(family));
    }
  }
  return Response("200 OK", prometheus::TextSerializer().Serialize(families));
}

}  // namespace expertd
