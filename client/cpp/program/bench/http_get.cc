#include "client/cpp/program/bench/http_get.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace expertd::client {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMaxBody = 64 << 20;

std::string Name(const HttpUrl& url) { return absl::StrCat("http://", url.host, ":", url.port, url.path); }

// False: the deadline passed.
bool Ready(int fd, short events, Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  pollfd poll_fd{.fd = fd, .events = events};
  return left > 0 && poll(&poll_fd, 1, static_cast<int>(left)) == 1;
}

// A connected, non-blocking socket; -1: none of the addresses takes us.
int Connect(const addrinfo* addresses, Clock::time_point deadline) {
  for (const addrinfo* a = addresses; a != nullptr; a = a->ai_next) {
    const int fd = socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol);
    if (fd < 0) continue;
    int error = 0;
    socklen_t size = sizeof(error);
    const bool started = connect(fd, a->ai_addr, a->ai_addrlen) == 0 || errno == EINPROGRESS;
    if (started && Ready(fd, POLLOUT, deadline) && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 &&
        error == 0)
      return fd;
    close(fd);
  }
  return -1;
}

bool SendAll(int fd, absl::string_view text, Clock::time_point deadline) {
  while (!text.empty()) {
    if (!Ready(fd, POLLOUT, deadline)) return false;
    const ssize_t sent = send(fd, text.data(), text.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    text.remove_prefix(static_cast<std::size_t>(sent));
  }
  return true;
}

bool ReadAll(int fd, std::string& out, Clock::time_point deadline) {
  char buffer[16384];
  while (out.size() <= kMaxBody && Ready(fd, POLLIN, deadline)) {
    const ssize_t got = recv(fd, buffer, sizeof(buffer), 0);
    if (got == 0) return true;
    if (got < 0) return false;
    out.append(buffer, static_cast<std::size_t>(got));
  }
  return false;
}

}  // namespace

absl::StatusOr<HttpUrl> ParseHttpUrl(absl::string_view text) {
  absl::string_view rest = absl::StripPrefix(text, "http://");
  const auto slash = std::min(rest.find('/'), rest.size());
  HttpUrl url{.port = "80", .path = std::string(rest.substr(slash))};
  if (url.path.empty()) url.path = "/metrics";
  absl::string_view host = rest.substr(0, slash);
  const auto colon = host.rfind(':');
  if (colon != absl::string_view::npos && !absl::EndsWith(host, "]")) {
    url.port = std::string(host.substr(colon + 1));
    host = host.substr(0, colon);
  }
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  url.host = std::string(host);
  const bool digits = url.port.find_first_not_of("0123456789") == std::string::npos && !url.port.empty();
  if (url.host.empty() || !digits || absl::StrContains(text.substr(0, text.find('/')), "https")) {
    return absl::InvalidArgumentError(absl::StrCat("metrics: ", text, " is not http://HOST[:PORT][/PATH]"));
  }
  return url;
}

absl::StatusOr<std::string> HttpGet(const HttpUrl& url, std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* addresses = nullptr;
  if (const int error = getaddrinfo(url.host.c_str(), url.port.c_str(), &hints, &addresses); error != 0) {
    return absl::UnavailableError(absl::StrCat(Name(url), ": ", gai_strerror(error)));
  }
  const int fd = Connect(addresses, deadline);
  freeaddrinfo(addresses);
  if (fd < 0) return absl::UnavailableError(absl::StrCat(Name(url), ": nobody listens"));
  const absl::Cleanup closer = [fd] { close(fd); };
  // 1.0: the server closes the connection after the body, and does not send it in chunks.
  const std::string request = absl::StrCat("GET ", url.path, " HTTP/1.0\r\nHost: ", url.host, "\r\n\r\n");
  std::string response;
  if (!SendAll(fd, request, deadline) || !ReadAll(fd, response, deadline)) {
    return absl::UnavailableError(absl::StrCat(Name(url), ": no whole answer within ", timeout.count(), " ms"));
  }
  const auto body = response.find("\r\n\r\n");
  if (!absl::StartsWith(response, "HTTP/1.") || response.substr(8, 5) != " 200 " || body == std::string::npos) {
    return absl::InternalError(absl::StrCat(Name(url), ": answers \"", response.substr(0, response.find('\r')), "\""));
  }
  return response.substr(body + 4);
}

}  // namespace expertd::client
