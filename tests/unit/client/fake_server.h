// A server whose behaviour each request chooses by its model's name, on a loopback port.
//   copy   the rows as they came                     full   RESOURCE_EXHAUSTED, to be tried again after 7 ms
//   hold   no answer until it is cancelled           end    ends the stream with UNAVAILABLE
//   twice  every third request is answered as by copy, the two before it as by full
//   pause  the rows as they came, but nothing while the server is stopped: the last part of every period
//   flip   on a stream, the last bit of the answer is wrong
#pragma once

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "expertd/v1/expertd.pb.h"

namespace expertd::client {

class FakeServer {
 public:
  explicit FakeServer(const std::shared_ptr<grpc::ServerCredentials>& credentials = grpc::InsecureServerCredentials());
  ~FakeServer();

  const std::string& address() const { return address_; }
  // How many requests it has had, of all methods that take rows.
  int requests() const;
  // The last unary request's `authorization`, or a stream's; empty: none.
  std::string authorization() const;
  // What the health service says of the whole server.
  void SetServing(bool serving) { server_->GetHealthCheckService()->SetServingStatus("", serving); }
  // The layer that it lists: hidden size 8, 4 experts, 2 per token.
  static v1::Layer LayerOf(const std::string& model);
  static constexpr std::int64_t kMaxRows = 64;

  // The stops of `pause`, as they were: a busy machine ends them late. Begin and end since the server's start.
  static constexpr std::chrono::milliseconds kPausePeriod{6000}, kPauseLength{3000};
  struct Pause {
    std::chrono::nanoseconds begin, end;
  };
  std::vector<Pause> pauses() const;

 private:
  class Service;
  class Stops;
  struct Seen;
  std::unique_ptr<Seen> seen_;
  std::unique_ptr<Stops> stops_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

}  // namespace expertd::client
