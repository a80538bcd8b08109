// What the protocol's queries answer about the server and its layers.
#pragma once

#include <inference/grpc_service.pb.h>

#include "absl/strings/string_view.h"
#include "server/layer_table.h"
#include "server/metrics.h"

namespace expertd::kserve {

void DescribeServer(absl::string_view version, bool shared_memory, inference::ServerMetadataResponse* out);
void DescribeModel(const LayerSpec& spec, inference::ModelMetadataResponse* out);
// `max_rows` of one request: the protocol's batch size.
void DescribeConfig(const LayerTable::Row& row, std::int64_t max_rows, inference::ModelConfig* out);
void DescribeStatistics(const LayerSpec& spec, const LayerTotals& totals, inference::ModelStatistics* out);
void DescribeIndex(const LayerTable::Row& row, inference::RepositoryIndexResponse::ModelIndex* out);

}  // namespace expertd::kserve
