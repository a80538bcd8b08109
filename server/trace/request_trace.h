// From requests to spans.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "server/codec/forward_codec.h"
#include "server/job.h"
#include "server/metrics.h"
#include "server/trace/span_writer.h"

namespace expertd {

// Null unless `spans` is there and the head's traceparent is valid and sampled.
std::shared_ptr<RequestSpan> StartSpan(SpanWriter* spans, const ForwardHead& head, Rpc rpc, absl::string_view tenant,
                                       Clock::time_point arrival);

// Hands the span over; does nothing with null.
void EndSpan(SpanWriter* spans, const std::shared_ptr<RequestSpan>& span, const absl::Status& status,
             const RequestTimes& times, const BatchReport& report);

}  // namespace expertd
