#include "client/cpp/program/bench/payload.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

namespace expertd::client {
namespace {

v1::Layer SomeLayer() {
  v1::Layer layer;
  layer.set_model("m");
  layer.set_layer(4);
  layer.set_hidden_size(10);
  layer.set_num_experts(6);
  layer.set_experts_per_token(6);
  layer.set_fingerprint("f");
  return layer;
}

std::string Rows(const Request& request) {
  return std::string(request.hidden_states.begin(), request.hidden_states.end());
}

TEST(PayloadTest, SeedsDecideTheRows) {
  const Request a = RandomRequest(SomeLayer(), 3, false, 1), again = RandomRequest(SomeLayer(), 3, false, 1),
                b = RandomRequest(SomeLayer(), 3, false, 2);
  EXPECT_EQ(a.hidden_states.size(), 3u * 10 * 2);
  EXPECT_EQ(Rows(a), Rows(again));
  EXPECT_NE(Rows(a), Rows(b));
  EXPECT_FALSE(a.head.has_routing());
}

TEST(PayloadTest, RoutingNamesDistinctExpertsWithWeightsThatSumToOne) {
  const Request request = RandomRequest(SomeLayer(), 5, true, 1);
  const v1::Routing& routing = request.head.routing();
  ASSERT_EQ(routing.topk_ids().size(), 5u * 6 * 4);
  ASSERT_EQ(routing.topk_weights().size(), 5u * 6 * 4);
  for (std::size_t row = 0; row < 5; ++row) {
    std::set<std::int32_t> ids;
    float sum = 0;
    for (std::size_t i = 0; i < 6; ++i) {
      std::int32_t id;
      float weight;
      std::memcpy(&id, routing.topk_ids().data() + (row * 6 + i) * 4, 4);
      std::memcpy(&weight, routing.topk_weights().data() + (row * 6 + i) * 4, 4);
      ids.insert(id);
      sum += weight;
      EXPECT_GT(weight, 0);
    }
    EXPECT_EQ(ids, (std::set<std::int32_t>{0, 1, 2, 3, 4, 5}));
    EXPECT_NEAR(sum, 1, 1e-5);
  }
}

TEST(PayloadTest, OneRowIsThatRow) {
  const Request request = RandomRequest(SomeLayer(), 3, true, 1);
  std::string rows, ids;
  for (std::int64_t row = 0; row < 3; ++row) {
    const Request one = OneRow(request, row);
    EXPECT_EQ(one.head.rows(), 1);
    EXPECT_EQ(one.head.model(), "m");
    rows += Rows(one);
    ids += one.head.routing().topk_ids();
  }
  EXPECT_EQ(rows, Rows(request));
  EXPECT_EQ(ids, request.head.routing().topk_ids());
}

}  // namespace
}  // namespace expertd::client
