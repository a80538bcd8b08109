// The one place where our statuses become gRPC's.
#pragma once

#include <grpcpp/impl/codegen/server_context.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace expertd {

// Code and message as they are (the codes are the same numbers). A status with a retry hint (server/status.h) also
// carries google.rpc.RetryInfo in its details and, when `context` is given, the trailer grpc-retry-pushback-ms; call it
// before the call is finished then.
grpc::Status ToGrpcStatus(const absl::Status& status, grpc::ServerContextBase* context);

}  // namespace expertd
