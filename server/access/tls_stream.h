// A socket's bytes, in plaintext or over TLS: for the few connections that are not gRPC's.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/access/certificates.h"

typedef struct ssl_st SSL;
typedef struct ssl_ctx_st SSL_CTX;

namespace expertd {

// Blocking, within the socket's own timeouts. Borrows the descriptor. Not thread-safe.
class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // How many bytes came; 0: the peer has closed, the connection failed or its timeout has passed.
  virtual std::size_t Read(char* buffer, std::size_t size) = 0;
  // False when not all of it was taken.
  virtual bool Write(absl::string_view bytes) = 0;
};

std::unique_ptr<ByteStream> PlainStream(int fd);

// Makes TLS 1.2 and 1.3 server sides out of connected sockets, with what `certificates` holds when they connect.
// A client CA there means that clients need a certificate. Not thread-safe.
class TlsAcceptor {
 public:
  explicit TlsAcceptor(std::shared_ptr<const CertificateStore> certificates);
  ~TlsAcceptor();
  TlsAcceptor(const TlsAcceptor&) = delete;
  TlsAcceptor& operator=(const TlsAcceptor&) = delete;

  // Shakes hands; null when the peer does not, or not as it has to.
  std::unique_ptr<ByteStream> Accept(int fd);

 private:
  void Renew(std::shared_ptr<const Certificates> certificates);

  const std::shared_ptr<const CertificateStore> certificates_;
  std::shared_ptr<const Certificates> used_;  // what context_ was made of
  SSL_CTX* context_ = nullptr;
};

}  // namespace expertd
