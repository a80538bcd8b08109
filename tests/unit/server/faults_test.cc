// What callers, operators and the next request see when the device fails. A lost and a hung device are in
// health_test.cc, and as a process in the integration tests.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <utility>
#include <vector>

#include "tests/unit/server/server_fixture.h"

namespace expertd::testing {
namespace {

using ::testing::HasSubstr;

std::int64_t RowsOf(absl::Span<const Segment> segments) {
  std::int64_t rows = 0;
  for (const Segment& segment : segments) rows += segment.rows;
  return rows;
}

class FaultsTest : public ServerTest {
 protected:
  struct Fate {
    v1::ForwardRequest request;
    grpc::Status status;
    v1::ForwardResponse response;
  };

  // Callers 1, 2, ... whose requests of `rows` rows wait for the same batch, behind one that `fault` does not concern.
  std::vector<Fate> RunTogether(int callers, std::int64_t rows, GatedEngine::Verdict fault) {
    Start();
    engine_->Close();
    std::thread first([&] {
      v1::ForwardResponse response;
      EXPECT_TRUE(Forward(MakeRequest(100, 1), &response).ok());
    });
    EXPECT_TRUE(engine_->WaitForBatches(1));
    std::vector<Fate> fates(static_cast<std::size_t>(callers));
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < fates.size(); ++i) {
      fates[i].request = MakeRequest(i + 1, rows);
      threads.emplace_back([this, &fate = fates[i]] { fate.status = Forward(fate.request, &fate.response); });
    }
    const double waiting = static_cast<double>(callers) * static_cast<double>(rows);
    EXPECT_TRUE(Eventually([&] { return Metric("expertd_queue_rows{layer=\"tiny/0\"}") == waiting; }));
    engine_->FailWhen([behind = false, fault = std::move(fault)](absl::Span<const Segment> segments) mutable {
      return std::exchange(behind, true) ? fault(segments) : absl::OkStatus();
    });
    engine_->Open();
    first.join();
    for (std::thread& thread : threads) thread.join();
    return fates;
  }

  void ExpectRight(const Fate& fate) {
    ASSERT_TRUE(fate.status.ok()) << fate.status.error_message();
    EXPECT_EQ(fate.response.result().output(), fate.request.hidden_states());
  }
  // After the fault is gone.
  void ExpectTheNextToBeRight() {
    engine_->FailWhen(nullptr);
    Fate next{.request = MakeRequest(50, 4), .status = {}, .response = {}};
    next.status = Forward(next.request, &next.response);
    ExpectRight(next);
    EXPECT_TRUE(Eventually([&] { return Metric("expertd_rows_in_flight") == 0; }));
    EXPECT_EQ(HealthOf("live"), 1);
    EXPECT_EQ(engine_lost_, 0);
  }
  double Answered(const std::string& code) {
    return Metric("expertd_requests_total{code=\"" + code + "\",rpc=\"Forward\"}");
  }
};

TEST_F(FaultsTest, WithoutMemoryForTheBatchSmallerOnesRun) {
  const auto fates = RunTogether(8, 4, [](absl::Span<const Segment> segments) {
    return RowsOf(segments) > 8 ? absl::ResourceExhaustedError("workspace: out of memory") : absl::OkStatus();
  });
  for (const Fate& fate : fates) {
    ExpectRight(fate);
    EXPECT_LE(fate.response.result().batch_rows(), 8u);
  }
  EXPECT_EQ(Answered("OK"), 9);
  ExpectTheNextToBeRight();
}

TEST_F(FaultsTest, WithoutMemoryForAnythingCallersAreToldToComeBack) {
  const auto fates = RunTogether(
      2, 4, [](absl::Span<const Segment>) { return absl::ResourceExhaustedError("workspace: out of memory"); });
  for (const Fate& fate : fates) {
    EXPECT_EQ(fate.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(fate.status.error_message(), HasSubstr("out of memory"));
    EXPECT_THAT(fate.status.error_details(), HasSubstr("google.rpc.RetryInfo"));
  }
  EXPECT_EQ(Answered("RESOURCE_EXHAUSTED"), 2);
  ExpectTheNextToBeRight();
}

TEST_F(FaultsTest, ALaunchThatFailsForOneRequestLeavesItsNeighboursAlone) {
  const std::string poison = MakeRequest(3, 4).hidden_states();
  const auto fates = RunTogether(8, 4, [poison](absl::Span<const Segment> segments) {
    for (const Segment& segment : segments) {
      if (absl::string_view(static_cast<const char*>(segment.input), poison.size()) == poison) {
        return absl::UnknownError("launch failed: invalid configuration");
      }
    }
    return absl::OkStatus();
  });
  for (std::size_t i = 0; i < fates.size(); ++i) {
    if (i != 2) ExpectRight(fates[i]);
  }
  EXPECT_EQ(fates[2].status.error_code(), grpc::StatusCode::UNKNOWN);
  EXPECT_THAT(fates[2].status.error_message(), HasSubstr("launch failed"));
  EXPECT_EQ(Answered("OK"), 8);
  EXPECT_EQ(Answered("UNKNOWN"), 1);
  ExpectTheNextToBeRight();
}

TEST_F(FaultsTest, AFaultThatPassesIsNotSeen) {
  int failures = 1;
  const auto fates = RunTogether(4, 4, [failures](absl::Span<const Segment>) mutable {
    return failures-- > 0 ? absl::UnknownError("launch failed") : absl::OkStatus();
  });
  for (const Fate& fate : fates) ExpectRight(fate);
  EXPECT_EQ(Answered("UNKNOWN"), 0);
  ExpectTheNextToBeRight();
}

}  // namespace
}  // namespace expertd::testing
