// Whether a listener still answers. Running out of file descriptors, for one, stops gRPC's for good (1.51) while
// everything else in the process goes on.
#pragma once

#include <chrono>
#include <string>

#include "absl/status/status.h"

namespace expertd {

// Connects to `address` ("HOST:PORT" as bound, or "unix:PATH"; a wildcard is asked over loopback) and waits for the
// first bytes that the other side says: HTTP/2 settings, or with `tls` its part of a handshake. Blocks for `timeout` at
// most. Unavailable with the reason when nothing comes.
absl::Status ProbeListener(const std::string& address, bool tls, std::chrono::milliseconds timeout);

// Counts failures in a row.
class ProbeJudge {
 public:
  explicit ProbeJudge(int patience) : patience_(patience) {}
  // True: `patience` probes in a row have failed.
  bool Dead(bool answered) {
    failures_ = answered ? 0 : failures_ + 1;
    return failures_ >= patience_;
  }

 private:
  const int patience_;
  int failures_ = 0;
};

}  // namespace expertd
