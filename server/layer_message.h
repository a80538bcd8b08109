// A layer as the API shows it.
#pragma once

#include <expertd/v1/expertd.pb.h>

#include "server/layer_table.h"

namespace expertd {

void DescribeLayer(const LayerTable::Row& row, v1::Layer* out);

}  // namespace expertd
