// Every golden checkpoint, all of them in one server, over the wire: unary and stream, server-routed and pre-routed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <future>
#include <map>

#include "client/cpp/client.h"
#include "tests/integration/golden_case.h"
#include "tests/integration/server_process.h"
#include "tests/support/rows.h"

namespace expertd::testing {
namespace {

using client::Answer;
using client::Client;
using client::Request;

constexpr double kTolerance = 5e-3;

class GoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  static void SetUpTestSuite() {
    std::vector<std::string> flags;
    for (const std::string& name : GoldenNames()) flags.insert(flags.end(), {"--checkpoint", GoldenDir(name)});
    auto server = ServerProcess::Start(EXPERTD_BIN_DIR, flags);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = server->release();
    auto client = Client::Connect({.endpoint = server_->address(), .connections = 2});
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = client->release();
  }
  static void TearDownTestSuite() {
    delete client_;
    delete server_;
  }
  void SetUp() override { ASSERT_NE(client_, nullptr) << "the server did not start"; }

  static absl::StatusOr<Answer> Unary(const Request& request) {
    return client_->Forward(request, std::chrono::seconds(30));
  }
  static absl::StatusOr<Answer> Streamed(const Request& request) {
    const auto stream = client_->OpenStream();
    std::promise<absl::StatusOr<Answer>> promise;
    const auto id =
        stream->Forward(request, [&](absl::StatusOr<Answer> answer) { promise.set_value(std::move(answer)); });
    if (!id.ok()) return id.status();
    auto answer = promise.get_future().get();
    EXPECT_TRUE(stream->Close().ok());
    return answer;
  }

  static ServerProcess* server_;
  static Client* client_;
};

ServerProcess* GoldenTest::server_ = nullptr;
Client* GoldenTest::client_ = nullptr;

// Row by row the same experts, each with its weight; the order within a row is the model's own.
void ExpectSameRouting(const v1::Routing& got, const GoldenLayer& want, std::int64_t rows) {
  ASSERT_EQ(got.k(), want.k);
  const auto k = static_cast<std::size_t>(want.k);
  ASSERT_EQ(got.topk_ids().size(), want.topk_ids.size() * 4);
  ASSERT_EQ(got.topk_weights().size(), want.topk_weights.size() * 4);
  const auto ids = ValuesOf(got.topk_ids().data(), DType::kI32, want.topk_ids.size());
  const auto weights = ValuesOf(got.topk_weights().data(), DType::kF32, want.topk_weights.size());
  for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row) {
    std::map<std::int64_t, double> wanted, given;
    for (std::size_t i = row * k; i < (row + 1) * k; ++i) {
      wanted[want.topk_ids[i]] = want.topk_weights[i];
      given[static_cast<std::int64_t>(ids[i])] = weights[i];
    }
    ASSERT_EQ(wanted.size(), given.size()) << "row " << row;
    for (const auto& [id, weight] : wanted) {
      ASSERT_TRUE(given.contains(id)) << "row " << row << " expert " << id;
      EXPECT_NEAR(given.at(id), weight, 1e-3 * std::max(1.0, std::abs(weight))) << "row " << row << " expert " << id;
    }
  }
}

TEST_P(GoldenTest, AnswersAreTheModelsOwn) {
  const GoldenCase golden(GetParam());
  ASSERT_FALSE(golden.layers.empty());
  for (const GoldenLayer& layer : golden.layers) {
    SCOPED_TRACE(layer.layer);
    Request request = golden.RequestFor(layer.layer);
    request.head.set_return_routing(true);
    const auto routed = Unary(request);
    ASSERT_TRUE(routed.ok()) << routed.status();
    EXPECT_LE(RelativeError(Values(*routed), layer.output), kTolerance);
    if (layer.k > 0) ExpectSameRouting(routed->result().routing(), layer, golden.rows);

    const auto streamed = Streamed(request);
    ASSERT_TRUE(streamed.ok()) << streamed.status();
    EXPECT_EQ(streamed->OutputString(), routed->OutputString()) << "a stream gives other bits";
    EXPECT_EQ(streamed->result().fingerprint(), routed->result().fingerprint());

    // The routing that was used, sent with the rows, is the same computation.
    *request.head.mutable_routing() = routed->result().routing();
    request.head.set_shared_expert(true);
    for (const auto& pre_routed : {Unary(request), Streamed(request)}) {
      ASSERT_TRUE(pre_routed.ok()) << pre_routed.status();
      EXPECT_EQ(pre_routed->OutputString(), routed->OutputString()) << "pre-routed gives other bits";
    }
  }
}

TEST_P(GoldenTest, F32RowsGiveTheSameWithinTheirPrecision) {
  const GoldenCase golden(GetParam());
  for (const GoldenLayer& layer : golden.layers) {
    Request request = golden.RequestFor(layer.layer);
    std::string wide;
    for (const double value : ValuesOf(golden.hidden_states.data(), DType::kBF16, golden.hidden_states.size() / 2)) {
      const auto narrow = static_cast<float>(value);
      wide.append(reinterpret_cast<const char*>(&narrow), sizeof(narrow));
    }
    request.head.set_dtype(v1::DTYPE_F32);
    request.hidden_states = grpc::Slice(wide);
    const auto answer = Unary(request);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_LE(RelativeError(Values(*answer), layer.output), 1e-4) << golden.name << "/" << layer.layer;
  }
}

TEST_P(GoldenTest, TheSharedExpertCanBeLeftOut) {
  const GoldenCase golden(GetParam());
  const auto listed = client_->ListLayers();
  ASSERT_TRUE(listed.ok());
  for (const v1::Layer& layer : listed->layers()) {
    if (layer.model() != golden.name) continue;
    Request request = golden.RequestFor(layer.layer());
    const auto with = Unary(request);
    request.head.set_shared_expert(false);
    const auto without = Unary(request);
    ASSERT_TRUE(with.ok() && without.ok());
    EXPECT_EQ(with->OutputString() == without->OutputString(), layer.shared_intermediate_size() == 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenTest, ::testing::ValuesIn(GoldenNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace expertd::testing
