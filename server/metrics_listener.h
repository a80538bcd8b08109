// The Prometheus endpoint: HTTP/1.1, GET /metrics and nothing else, one connection at a time.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"
#include "server/access/tls_stream.h"
#include "server/metrics.h"

namespace expertd {

// Serves on a thread of its own until it is destroyed. A scraper has five seconds; others wait.
//
// Ours instead of prometheus-cpp's exposer: CivetWeb, as Debian 12 ships it, crashes on the first request over TLS (it
// looks for a function that OpenSSL 3 no longer has), and stops within two seconds only.
class MetricsListener {
 public:
  // `certificates` null: plaintext. Unavailable when the address (HOST:PORT) cannot be bound, also when another process
  // has it. `metrics` may go before the listener.
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(const std::string& address,
                                                                std::shared_ptr<const CertificateStore> certificates,
                                                                const Metrics& metrics);
  ~MetricsListener();

  const std::string& address() const { return address_; }  // as bound

 private:
  MetricsListener(int listen_fd, std::string address, std::shared_ptr<const CertificateStore> certificates,
                  const Metrics& metrics);

  void Run();
  void Serve(int fd);
  std::string Answer(const std::string& request) const;

  const int listen_fd_;
  const int stop_fd_;  // readable: stop
  const std::string address_;
  const std::vector<std::weak_ptr<prometheus::Collectable>> collectables_;
  std::unique_ptr<TlsAcceptor> tls_;  // the thread's

  Mutex mutex_;
  int connection_fd_ ABSL_GUARDED_BY(mutex_) = -1;  // the one that is served
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace expertd
