// A row's answer does not depend on who else is being served: many callers at once against each alone, bit for bit.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "client/cpp/client.h"
#include "client/cpp/program/bench/payload.h"
#include "kernels/tensor.h"
#include "tests/integration/golden_case.h"
#include "tests/integration/server_process.h"

namespace expertd::testing {
namespace {

using client::Answer;
using client::Client;
using client::Request;

constexpr std::size_t kRequests = 48;
constexpr int kRounds = 1500;

struct Question {
  Request request;
  std::string alone;
};

// Every way to ask, in many sizes; some rows are poisoned.
Request SomeRequest(const v1::Layer& layer, std::size_t i) {
  static constexpr std::int64_t kRows[] = {1, 2, 3, 7, 15, 16, 17, 33};
  const bool pre_routed = i % 3 == 1;
  Request request = client::RandomRequest(layer, kRows[i % std::size(kRows)], pre_routed, i);
  if (i % 4 == 3) request.head.set_output_dtype(v1::DTYPE_F32);
  if (i % 5 == 4) request.head.set_shared_expert(pre_routed);
  if (i % 7 == 6) {
    std::string bytes(request.hidden_states.begin(), request.hidden_states.end());
    bytes[0] = '\xc0', bytes[1] = '\x7f';  // a bf16 NaN
    request.hidden_states = grpc::Slice(bytes);
  }
  return request;
}

void RunAmongNeighbours(const std::string& name) {
  auto server = ServerProcess::Start(EXPERTD_BIN_DIR, {"--checkpoint", GoldenDir(name), "--max-batch-rows", "128"});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = Client::Connect({.endpoint = (*server)->address(), .connections = 4});
  ASSERT_TRUE(client.ok()) << client.status();
  const auto layers = (*client)->ListLayers();
  ASSERT_TRUE(layers.ok());

  std::vector<Question> questions;
  for (std::size_t i = 0; i < kRequests; ++i) {
    Question question{.request = SomeRequest(layers->layers(0), i)};
    const auto alone = (*client)->Forward(question.request);
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_EQ(alone->result().batch_requests(), 1u);
    question.alone = alone->OutputString();
    questions.push_back(std::move(question));
  }

  std::atomic<int> answered{0}, differing{0}, failed{0}, shared{0};
  const auto check = [&](const Question& question) {
    return [&](absl::StatusOr<Answer> answer) {
      if (!answer.ok()) {
        ++failed;
      } else {
        if (answer->OutputString() != question.alone) ++differing;
        if (answer->result().batch_requests() > 1) ++shared;
      }
      ++answered;
    };
  };
  std::mt19937 random(11);
  std::vector<std::unique_ptr<client::Stream>> streams;
  for (int i = 0; i < 4; ++i) streams.push_back((*client)->OpenStream(16));
  for (int i = 0; i < kRounds; ++i) {
    const Question& question = questions[random() % questions.size()];
    if (i % 5 == 4) {
      (*client)->ForwardAsync(question.request, std::chrono::seconds(30), check(question));
    } else {
      ASSERT_TRUE(streams[random() % streams.size()]->Forward(question.request, check(question)).ok());
    }
  }
  for (const auto& stream : streams) EXPECT_TRUE(stream->Close().ok());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (answered < kRounds && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(answered, kRounds);
  EXPECT_EQ(failed, 0);
  EXPECT_EQ(differing, 0) << "of " << answered << " answers";
  EXPECT_GT(shared, kRounds / 10) << "requests hardly ever met: this proves nothing";
}

TEST(NeighboursTest, PlainExperts) { RunAmongNeighbours("olmoe"); }
TEST(NeighboursTest, GroupsAndASharedExpert) { RunAmongNeighbours("deepseek_v3"); }
TEST(NeighboursTest, Fp8WeightsInBlocks) { RunAmongNeighbours("deepseek_v3_fp8"); }
TEST(NeighboursTest, Mxfp4WeightsAndBiases) { RunAmongNeighbours("gpt_oss_mxfp4"); }

}  // namespace
}  // namespace expertd::testing
