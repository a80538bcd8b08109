#include "kernels/c/status.h"

#include <algorithm>
#include <cstring>

namespace expertd::c {
namespace {

// Fixed, so that running out of memory can be reported.
thread_local char last_error[1024] = "";

}  // namespace

expertd_status Report(absl::StatusCode code, absl::string_view message) noexcept {
  const std::size_t size = std::min(message.size(), sizeof(last_error) - 1);
  std::memcpy(last_error, message.data(), size);
  last_error[size] = '\0';
  switch (code) {  // what the header promises; nothing else leaves
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kUnavailable:
      return static_cast<expertd_status>(code);
    default:
      return EXPERTD_INTERNAL;
  }
}

}  // namespace expertd::c

const char* expertd_last_error(void) { return expertd::c::last_error; }
int32_t expertd_abi_version(void) { return EXPERTD_ABI_VERSION; }
const char* expertd_version(void) { return EXPERTD_VERSION; }
