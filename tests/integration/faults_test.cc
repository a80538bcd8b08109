// A device that stops answering, as a process sees it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "client/cpp/client.h"
#include "tests/integration/golden_case.h"
#include "tests/integration/server_process.h"

namespace expertd::testing {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

TEST(FaultsTest, AHungDeviceEndsTheProcessWith7WithinFiveSeconds) {
  const GoldenCase golden("olmoe");
  // Every batch takes a minute, which is longer than a batch may take.
  const auto server =
      ServerProcess::Start(EXPERTD_BIN_DIR, {"--checkpoint", GoldenDir("olmoe"), "--device", "null", "--null-batch-us",
                                             "60000000", "--hang-timeout-ms", "500"});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = client::Client::Connect({.endpoint = (*server)->address()});
  ASSERT_TRUE(client.ok()) << client.status();
  const auto start = std::chrono::steady_clock::now();
  const absl::Status status = (*client)->Forward(golden.RequestFor(golden.layers[0].layer), seconds(30)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("--hang-timeout-ms 500"));
  EXPECT_EQ((*server)->process().Wait(seconds(10)), 7);
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(5));
  EXPECT_THAT((*server)->process().err(), HasSubstr("a batch has run for"));
}

}  // namespace
}  // namespace expertd::testing
