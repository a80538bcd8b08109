#include "server/access/tls_stream.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <utility>

#include "server/access/openssl_pointers.h"

namespace expertd {
namespace {

class Plain : public ByteStream {
 public:
  explicit Plain(int fd) : fd_(fd) {}

  std::size_t Read(char* buffer, std::size_t size) override {
    const ssize_t got = recv(fd_, buffer, size, 0);
    return got > 0 ? static_cast<std::size_t>(got) : 0;
  }

  bool Write(absl::string_view bytes) override {
    while (!bytes.empty()) {
      const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
    return true;
  }

 private:
  const int fd_;
};

class Tls : public ByteStream {
 public:
  explicit Tls(SSL* ssl) : ssl_(ssl) {}
  ~Tls() override {
    SSL_shutdown(ssl_);
    SSL_free(ssl_);
    ERR_clear_error();
  }

  std::size_t Read(char* buffer, std::size_t size) override {
    std::size_t got = 0;
    return SSL_read_ex(ssl_, buffer, size, &got) == 1 ? got : 0;
  }

  bool Write(absl::string_view bytes) override {
    std::size_t sent = 0;
    return bytes.empty() || (SSL_write_ex(ssl_, bytes.data(), bytes.size(), &sent) == 1 && sent == bytes.size());
  }

 private:
  SSL* const ssl_;
};

// Calls take(certificate) for each one in the text; who takes it owns it.
template <class Take>
void ForEachCertificate(const std::string& pem, Take take) {
  const BioPtr bio = Over(pem);
  while (X509* certificate = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) take(certificate);
  ERR_clear_error();  // the end of the text is one
}

void UsePair(SSL_CTX* context, const Certificates& certificates) {
  bool first = true;
  ForEachCertificate(certificates.cert, [&](X509* certificate) {
    if (!std::exchange(first, false)) {
      SSL_CTX_add0_chain_cert(context, certificate);
      return;
    }
    SSL_CTX_use_certificate(context, certificate);
    X509_free(certificate);
  });
  const KeyPtr key(PEM_read_bio_PrivateKey(Over(certificates.key).get(), nullptr, nullptr, nullptr));
  SSL_CTX_use_PrivateKey(context, key.get());
}

void RequireClients(SSL_CTX* context, const std::string& client_ca) {
  ForEachCertificate(client_ca, [&](X509* certificate) {
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context), certificate);
    SSL_CTX_add_client_CA(context, certificate);
    X509_free(certificate);
  });
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
}

}  // namespace

std::unique_ptr<ByteStream> PlainStream(int fd) { return std::make_unique<Plain>(fd); }

TlsAcceptor::TlsAcceptor(std::shared_ptr<const CertificateStore> certificates)
    : certificates_(std::move(certificates)) {}

TlsAcceptor::~TlsAcceptor() { SSL_CTX_free(context_); }

// The store has checked the pair: what fails here is memory.
void TlsAcceptor::Renew(std::shared_ptr<const Certificates> certificates) {
  SSL_CTX_free(context_);
  context_ = SSL_CTX_new(TLS_server_method());
  SSL_CTX_set_min_proto_version(context_, TLS1_2_VERSION);
  SSL_CTX_set_session_cache_mode(context_, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(context_, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION);
  UsePair(context_, *certificates);
  if (!certificates->client_ca.empty()) RequireClients(context_, certificates->client_ca);
  used_ = std::move(certificates);
}

std::unique_ptr<ByteStream> TlsAcceptor::Accept(int fd) {
  std::shared_ptr<const Certificates> current = certificates_->current();
  if (current != used_) Renew(std::move(current));
  SSL* ssl = SSL_new(context_);
  SSL_set_fd(ssl, fd);
  if (SSL_accept(ssl) == 1) return std::make_unique<Tls>(ssl);
  SSL_free(ssl);
  ERR_clear_error();
  return nullptr;
}

}  // namespace expertd
