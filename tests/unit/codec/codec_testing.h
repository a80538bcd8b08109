// What the codec's tests share: messages in slices, and heads held against what Protobuf read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "expertd/v1/expertd.pb.h"
#include "gtest/gtest.h"
#include "server/codec/forward_codec.h"

namespace expertd {

// A message cut into slices. Each lies in memory of its own, so that AddressSanitizer sees a read beyond its end.
class CutMessage {
 public:
  // Cut before each of the ascending positions `cuts`; a position that stands twice gives an empty slice.
  CutMessage(absl::string_view message, const std::vector<std::size_t>& cuts) {
    std::size_t begin = 0;
    for (std::size_t cut : cuts) {
      Add(message.substr(begin, cut - begin));
      begin = cut;
    }
    Add(message.substr(begin));
    for (const std::vector<char>& part : parts_) views_.emplace_back(part.data(), part.size());
  }
  explicit CutMessage(absl::string_view message) : CutMessage(message, {}) {}

  Slices slices() const { return views_; }

 private:
  void Add(absl::string_view part) { parts_.emplace_back(part.begin(), part.end()); }

  std::vector<std::vector<char>> parts_;
  std::vector<absl::string_view> views_;
};

inline std::string Gathered(Slices slices, WireRange range) {
  std::string out(range.size, '\0');
  Gather(slices, range, reinterpret_cast<std::byte*>(out.data()));
  return out;
}

inline void ExpectSame(const ForwardHead& head, Slices slices, const v1::ForwardRequest& message) {
  const auto dtype = [](v1::DType wire) {
    return wire == v1::DTYPE_F8_E4M3 ? DType::kF8E4M3 : wire == v1::DTYPE_F32 ? DType::kF32 : DType::kBF16;
  };
  EXPECT_EQ(head.model, message.model());
  EXPECT_EQ(head.layer, message.layer());
  EXPECT_EQ(head.request_id, message.request_id());
  EXPECT_EQ(head.rows, message.rows());
  EXPECT_EQ(head.dtype, dtype(message.dtype()));
  EXPECT_EQ(head.output_dtype, dtype(message.has_output_dtype() ? message.output_dtype() : message.dtype()));
  EXPECT_EQ(head.shared_expert.has_value(), message.has_shared_expert());
  EXPECT_EQ(head.shared_expert.value_or(false), message.shared_expert());
  EXPECT_EQ(head.return_routing, message.return_routing());
  EXPECT_EQ(head.timeout_us, message.timeout_us());
  EXPECT_EQ(head.priority, static_cast<int>(message.priority()));
  EXPECT_EQ(head.traceparent, message.traceparent());
  EXPECT_EQ(head.expected_fingerprint, message.expected_fingerprint());
  EXPECT_EQ(head.pre_routed, message.has_routing());
  EXPECT_EQ(head.k, message.routing().k());
  EXPECT_EQ(Gathered(slices, head.topk_ids), message.routing().topk_ids());
  EXPECT_EQ(Gathered(slices, head.topk_weights), message.routing().topk_weights());
  EXPECT_EQ(Gathered(slices, head.hidden_states), message.hidden_states());
  EXPECT_EQ(head.scale_block, message.scale_block());
  EXPECT_EQ(head.output_scale_block, message.output_scale_block());
  EXPECT_EQ(Gathered(slices, head.scales), message.scales());
  ASSERT_EQ(head.region.has_value(), message.has_region());
  if (!head.region) return;
  EXPECT_EQ(head.region->handle, message.region().handle());
  EXPECT_EQ(head.region->input_offset, message.region().input_offset());
  EXPECT_EQ(head.region->output_offset, message.region().output_offset());
}

}  // namespace expertd
