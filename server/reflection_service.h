// grpc.reflection.v1alpha: what a server can be asked, for tools that have no .proto.
#pragma once

#include <grpc/reflection/v1alpha/reflection.grpc.pb.h>

#include <string>
#include <vector>

#include "server/access/access.h"

namespace expertd {

namespace reflection = grpc::reflection::v1alpha;

class ReflectionService final : public reflection::ServerReflection::CallbackService {
 public:
  // `access` must outlive the gRPC server that this is registered with. `open`: nobody is asked for a role; otherwise
  // admins only.
  ReflectionService(const Access& access, bool open) : access_(access), open_(open) {}

  // The services that are listed, by their full names. Before the server starts.
  void Announce(std::vector<std::string> services) { services_ = std::move(services); }

  grpc::ServerBidiReactor<reflection::ServerReflectionRequest, reflection::ServerReflectionResponse>*
  ServerReflectionInfo(grpc::CallbackServerContext* context) override;

 private:
  class Session;

  const Access& access_;
  const bool open_;
  std::vector<std::string> services_;
};

}  // namespace expertd
