// Random rows and routing to send.
#pragma once

#include <cstdint>

#include "client/cpp/messages.h"

namespace expertd::client {

// `rows` rows of normally distributed bf16 values for the layer; with `pre_routed` also the layer's K distinct random
// experts a row, with positive weights that sum to 1. Equal seeds give equal requests.
Request RandomRequest(const v1::Layer& layer, std::int64_t rows, bool pre_routed, std::uint64_t seed);

// Row `row` of a request as a request of its own: the same options, its own rows and routing.
Request OneRow(const Request& request, std::int64_t row);

}  // namespace expertd::client
