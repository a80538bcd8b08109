// `expertd probe`, as images and units call it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>

#include "tests/integration/golden_case.h"
#include "tests/integration/server_process.h"

namespace expertd::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr std::chrono::seconds kProbePatience{30};

Outcome Probe(const std::vector<std::string>& arguments) {
  return RunToEnd({EXPERTD_BIN_DIR "/expertd", "probe"}, arguments);
}

TEST(ProbeTest, FollowsTheServersHealth) {
  const auto server = ServerProcess::Start(EXPERTD_BIN_DIR, {"--checkpoint", GoldenDir("olmoe"), "--health-address",
                                                             "127.0.0.1:0", "--drain-grace-ms", "60000"});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = (*server)->process().WaitForLine("health on ", kProbePatience).value_or("");
  for (const char* service : {"", "live", "olmoe/0"}) {
    const Outcome outcome = Probe({"--address", address, "--service", service});
    EXPECT_EQ(outcome.code, 0) << service << ": " << outcome.err;
    EXPECT_THAT(outcome.out, StartsWith(address + " "));
    EXPECT_THAT(outcome.out, HasSubstr(": SERVING"));
  }
  EXPECT_EQ(Probe({"--address", (*server)->address()}).code, 0) << "the service's own listener has health too";
  const Outcome unknown = Probe({"--address", address, "--service", "olmoe/99"});
  EXPECT_EQ(unknown.code, 1);
  EXPECT_THAT(unknown.err, HasSubstr("olmoe/99: the server knows no such service"));

  (*server)->process().Signal(SIGTERM);
  Outcome ready;
  for (const auto end = std::chrono::steady_clock::now() + kProbePatience; std::chrono::steady_clock::now() < end;) {
    if (ready = Probe({"--address", address}); ready.code != 0) break;
  }
  EXPECT_EQ(ready.code, 1);
  EXPECT_THAT(ready.err, HasSubstr("NOT_SERVING"));
  EXPECT_EQ(Probe({"--address", address, "--service", "live"}).code, 0) << "a draining server is alive";
}

TEST(ProbeTest, NobodyThereIsOneAndWrongUsageTwo) {
  const Outcome nobody = Probe({"--address", "127.0.0.1:1", "--timeout-ms", "2000"});
  EXPECT_EQ(nobody.code, 1);
  EXPECT_THAT(nobody.err, StartsWith("expertd: probe 127.0.0.1:1"));
  EXPECT_EQ(Probe({"--timeout-ms", "0"}).code, 2);
  EXPECT_EQ(Probe({"--adress", "127.0.0.1:1"}).code, 2);
}

}  // namespace
}  // namespace expertd::testing
