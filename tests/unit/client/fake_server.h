// A server whose behaviour each request chooses by its model's name, on a loopback port.
//   copy   the rows as they came                     full   RESOURCE_EXHAUSTED, to be tried again after 7 ms
//   hold   no answer until it is cancelled           end    ends the stream with UNAVAILABLE
//   pause  the rows as they came, but nothing while the server is stopped: the last part of every period
//   flip   on a stream, the last bit of the answer is wrong
#pragma once

#include <grpcpp/server.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "expertd/v1/expertd.pb.h"

namespace expertd::client {

class FakeServer {
 public:
  FakeServer();
  ~FakeServer();

  const std::string& address() const { return address_; }
  // The layer that it lists: hidden size 8, 4 experts, 2 per token.
  static v1::Layer LayerOf(const std::string& model);
  static constexpr std::int64_t kMaxRows = 64;

  // The stops of `pause`, as they were: a busy machine ends them late. Begin and end since the server's start.
  static constexpr std::chrono::milliseconds kPausePeriod{1500}, kPauseLength{600};
  struct Pause {
    std::chrono::nanoseconds begin, end;
  };
  std::vector<Pause> pauses() const;

 private:
  class Service;
  class Stops;
  std::unique_ptr<Stops> stops_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

}  // namespace expertd::client
