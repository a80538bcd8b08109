#include "server/self_probe.h"

#include <netdb.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/lane/descriptor.h"
#include "server/listeners.h"

namespace expertd {
namespace {

absl::Status Silent(const std::string& address, absl::string_view reason) {
  return absl::UnavailableError(absl::StrCat("the listener on ", address, " does not answer: ", reason));
}

// Connected, or -1 with errno. Send and receive timeouts hold for connect too.
int ConnectTo(const sockaddr* address, socklen_t size, std::chrono::milliseconds timeout) {
  const int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  const timeval limit = {.tv_sec = timeout.count() / 1000, .tv_usec = timeout.count() % 1000 * 1000};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  if (connect(fd, address, size) == 0) return fd;
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

int ConnectUnix(absl::string_view path, std::chrono::milliseconds timeout) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path = path.substr(0, sizeof(address.sun_path) - 1);
  std::memcpy(address.sun_path, path.data(), path.size());
  return ConnectTo(reinterpret_cast<const sockaddr*>(&address), sizeof(address), timeout);
}

int ConnectTcp(const std::string& address, std::chrono::milliseconds timeout) {
  auto [host, port] = SplitHostPort(address);
  if (host == "0.0.0.0" || host.empty()) host = "127.0.0.1";
  if (host == "::") host = "::1";
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return -1;
  const int fd = ConnectTo(found->ai_addr, found->ai_addrlen, timeout);
  const int error = errno;
  freeaddrinfo(found);
  errno = error;
  return fd;
}

// Anything that the server says will do, a refusal too: whether it trusts us is not the question.
bool ShakesHands(int fd) {
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  SSL* ssl = SSL_new(context);
  const unsigned char http2[] = {2, 'h', '2'};
  SSL_set_alpn_protos(ssl, http2, sizeof(http2));
  SSL_set_fd(ssl, fd);
  const int result = SSL_connect(ssl);
  const bool answered = result == 1 || SSL_get_error(ssl, result) == SSL_ERROR_SSL;
  SSL_free(ssl);
  SSL_CTX_free(context);
  ERR_clear_error();
  return answered;
}

bool Speaks(int fd) {
  char first = 0;
  return recv(fd, &first, 1, 0) == 1;
}

}  // namespace

absl::Status ProbeListener(const std::string& address, bool tls, std::chrono::milliseconds timeout) {
  absl::string_view path = address;
  const bool is_unix = absl::ConsumePrefix(&path, "unix:");
  if (is_unix) absl::ConsumePrefix(&path, "//");
  const Descriptor connection(is_unix ? ConnectUnix(path, timeout) : ConnectTcp(address, timeout));
  if (!connection) return Silent(address, std::strerror(errno));
  if (tls ? ShakesHands(connection.get()) : Speaks(connection.get())) return absl::OkStatus();
  return Silent(address, absl::StrCat("nothing in ", timeout.count(), " ms"));
}

}  // namespace expertd
