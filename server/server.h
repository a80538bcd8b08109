// A running server: listeners, engine, scheduler and everything between them, and the order in which they come and go.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/engine.h"
#include "server/job.h"
#include "server/layer_plan.h"
#include "server/options.h"

namespace expertd {

inline constexpr absl::string_view kVersion = EXPERTD_VERSION;

// Addresses as bound, with the port that was chosen for port 0; empty where there is no such listener.
struct BoundAddresses {
  std::string service;
  std::string metrics;
  std::string health;
};

// What a caller may have to send or receive for one request: the largest rows of any planned layer in f32, routing and
// the small fields. InvalidArgument when gRPC cannot carry that.
absl::StatusOr<std::int64_t> MaxMessageBytes(const ServerOptions& options, std::int64_t max_k,
                                             const std::vector<PlannedLayer>& plan);

class Server {
 public:
  struct Hooks {
    // The engine is lost for good; called once, from an engine thread. Health says so already.
    std::function<void(const absl::Status& reason)> on_engine_lost;
    // The service's listener no longer answers; called once, from a thread of the server's. Health says so already.
    std::function<void(const absl::Status& reason)> on_listener_lost;
  };

  // Binds all listeners and answers from then on: health NOT_SERVING and every planned layer UNAVAILABLE until Load.
  // Unavailable: an address cannot be bound. InvalidArgument, AlreadyExists: options or plan do not fit together.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options, std::unique_ptr<Engine> engine,
                                                       std::vector<PlannedLayer> plan, Hooks hooks);

  // Cancels what is in progress and waits for it, engine included.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Loads the planned layers one after the other, each serving as soon as it is loaded; then the server is ready.
  // Blocks; Cancelled when `stop` (asked between layers) says so.
  absl::Status Load(const std::function<bool()>& stop);

  // Health NOT_SERVING; requests are still taken.
  void LeaveHealth();

  // Refuses new work, answers everything accepted, ends streams. False: not all of it by `deadline`.
  bool Drain(Clock::time_point deadline);

  const BoundAddresses& addresses() const;

 private:
  struct State;
  explicit Server(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace expertd
