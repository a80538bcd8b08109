// Who is calling, as far as the server knows. Determined once per call (a stream is one call) by access/access.h.
#pragma once

#include <string>

namespace expertd {

// Everybody's tenant where nobody is told apart.
inline constexpr char kDefaultTenant[] = "default";

struct Caller {
  // Whose share of the device this caller's requests are charged to: the name that a token or a client certificate
  // gives, else kDefaultTenant.
  std::string tenant = kDefaultTenant;
  bool may_infer = false;  // Forward, ForwardStream, ListLayers, GetServerInfo
  bool may_admin = false;  // the Admin service
};

}  // namespace expertd
