// gRPC's standard health service, on every listener that has it.
//   "live"             the process works: from the start until the engine is lost
//   ""                 every configured layer is loaded, and the server is not draining
//   "<model>/<layer>"  that layer serves, and the server is not draining
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/string_view.h"
#include "kernels/base/mutex.h"

namespace expertd {

// Thread-safe.
class Health {
 public:
  // Must be called before any server with health is built.
  static void Enable() { grpc::EnableDefaultHealthCheckService(true); }

  // gRPC itself starts with "" serving: to be called right after the server was built. Detach before it is destroyed.
  void Attach(grpc::Server& server) {
    MutexLock lock(mutex_);
    services_.push_back(server.GetHealthCheckService());
    services_.back()->SetServingStatus(kReady, false);
    services_.back()->SetServingStatus(kLive, true);
  }

  void Detach() {
    MutexLock lock(mutex_);
    services_.clear();
  }

  void LayerServes(const std::string& layer) { Set(layer, true); }
  // gRPC cannot forget a name: it stays, not serving.
  void LayerLeaves(const std::string& layer) { Set(layer, false); }
  void Ready() { Set(kReady, true); }

  // The same answers for other protocols.
  bool IsLive() const {
    MutexLock lock(mutex_);
    return !dead_;
  }
  bool IsReady() const { return Serves(kReady); }
  bool Serves(absl::string_view name) const {
    MutexLock lock(mutex_);
    return !left_ && serving_.find(std::string_view(name.data(), name.size())) != serving_.end();
  }

  // Draining: nothing but "live" serves, and that is final.
  void Leave() {
    MutexLock lock(mutex_);
    left_ = true;
    for (const std::string& name : serving_) SetAll(name, false);
  }
  void Dead() {
    Leave();
    MutexLock lock(mutex_);
    dead_ = true;
    SetAll(kLive, false);
  }

 private:
  static constexpr const char* kReady = "";
  static constexpr const char* kLive = "live";

  void Set(const std::string& name, bool serving) {
    MutexLock lock(mutex_);
    if (left_) return;
    if (serving) {
      serving_.insert(name);
    } else {
      serving_.erase(name);
    }
    SetAll(name, serving);
  }
  void SetAll(const std::string& name, bool serving) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (grpc::HealthCheckServiceInterface* service : services_) service->SetServingStatus(name, serving);
  }

  mutable Mutex mutex_;
  std::vector<grpc::HealthCheckServiceInterface*> services_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string, std::less<>> serving_ ABSL_GUARDED_BY(mutex_);
  bool left_ ABSL_GUARDED_BY(mutex_) = false;
  bool dead_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace expertd
