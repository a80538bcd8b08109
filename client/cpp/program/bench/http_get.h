// Just enough HTTP to scrape a metrics endpoint.
#pragma once

#include <chrono>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertd::client {

struct HttpUrl {
  std::string host, port, path;
};

// "http://HOST[:PORT][/PATH]", or without the scheme; IPv6 hosts in brackets. The path is /metrics when there is none.
// InvalidArgument naming the text, also for https.
absl::StatusOr<HttpUrl> ParseHttpUrl(absl::string_view text);

// The body. Blocks, at most for `timeout`. Unavailable: nobody answers; Internal: not 200, or not HTTP.
absl::StatusOr<std::string> HttpGet(const HttpUrl& url, std::chrono::milliseconds timeout);

}  // namespace expertd::client
