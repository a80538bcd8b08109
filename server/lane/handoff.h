// Where peers fetch the descriptors of their regions: a unix socket, and a one-time token for each region.
#pragma once

#include <array>
#include <cstddef>
#include <deque>
#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"
#include "server/lane/memory_file.h"
#include "server/lane/server_ring.h"

namespace expertd {

inline constexpr std::size_t kTokenBytes = 32;

// A peer connects (SOCK_SEQPACKET), sends a token as one message and gets one message back, "ok" with the descriptors
// as SCM_RIGHTS, or the reason why not; then the connection is closed. Offer and Withdraw are thread-safe, Serve is for
// one thread.
class Handoff {
 public:
  // Listens at `path`, which only the owner of the process can connect to (mode 0600). A socket that nobody listens at
  // any more is replaced. InvalidArgument: the path is too long; Unavailable: it cannot be bound, or another process
  // serves it.
  static absl::StatusOr<std::unique_ptr<Handoff>> Listen(const std::string& path);
  ~Handoff();  // removes the socket

  // What a token stands for; `ring` may be null.
  struct Parcel {
    std::shared_ptr<const Region> region;
    std::shared_ptr<const ServerRing> ring;
  };
  // Returns the token.
  std::string Offer(Parcel parcel);
  // Forgets a token; unknown ones, and those that were used, are none.
  void Withdraw(const std::string& token);

  // Readable when there is something to do.
  int descriptor() const { return events_.get(); }
  // Does what can be done without blocking.
  void Serve();

  const std::string& path() const { return path_; }

 private:
  Handoff(std::string path, Descriptor listener, Descriptor events);

  void Accept();
  void Answer(int connection);
  absl::StatusOr<Parcel> Redeem(const std::string& token);

  const std::string path_;
  const Descriptor listener_;
  const Descriptor events_;             // an epoll of the listener and the connections
  std::deque<Descriptor> connections_;  // that have not sent their token, oldest first

  Mutex mutex_;
  absl::flat_hash_map<std::string, Parcel> parcels_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
