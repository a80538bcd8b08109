// TLS for a gRPC listener, with certificates that may change while it serves.
#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "server/access/certificates.h"

namespace expertd {

// For one listener, and to be kept until its server is gone. Every handshake uses what `store` holds then. A client
// certificate is asked for, required and verified where the store holds a client CA. TLS 1.2 and 1.3, as gRPC has them.
//
// gRPC's own FileWatcherCertificateProvider hands over whatever the files hold: a half-replaced pair ends all
// handshakes (gRPC 1.51). So this asks for a certificate per handshake through gRPC's C API, and the store gives only
// pairs that fit.
std::shared_ptr<grpc::ServerCredentials> TlsCredentials(std::shared_ptr<const CertificateStore> store);

}  // namespace expertd
