// How C++ results leave through the C ABI: as a code and this thread's last error. No exception passes.
#pragma once

#include <exception>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/c/expertd.h"

namespace expertd::c {

// Keeps the message of a failure for expertd_last_error(). Allocates nothing.
expertd_status Report(absl::StatusCode code, absl::string_view message) noexcept;

// Runs `body`, which returns absl::Status.
template <typename Body>
expertd_status Guarded(const Body& body) noexcept {
  try {
    const absl::Status status = body();
    return status.ok() ? EXPERTD_OK : Report(status.code(), status.message());
  } catch (const std::bad_alloc&) {
    return Report(absl::StatusCode::kResourceExhausted, "host memory: an allocation failed");
  } catch (const std::exception& exception) {
    return Report(absl::StatusCode::kInternal, exception.what());
  } catch (...) {
    return Report(absl::StatusCode::kInternal, "an exception of unknown type");
  }
}

}  // namespace expertd::c
