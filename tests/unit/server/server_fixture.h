// A server in this process on an ephemeral port, with an engine whose batches the test lets go, and a raw client.
#pragma once

#include <expertd/v1/expertd.grpc.pb.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/mutex.h"
#include "kernels/engine.h"
#include "server/options.h"
#include "server/server.h"
#include "tests/support/host_exporter.h"

namespace expertd::testing {

inline constexpr std::int64_t kHidden = 64;

// Copies rows like the null engine; while closed, every batch waits in Run. Exports memory of the host.
class GatedEngine : public Engine {
 public:
  explicit GatedEngine(std::int64_t row_buffer_bytes = 64 << 20);

  void Close();
  void Open();
  // Batches answer this from now on, ok: as usual.
  void FailWith(absl::Status status);
  // The same, batch by batch.
  using Verdict = std::function<absl::Status(absl::Span<const Segment> segments)>;
  void FailWhen(Verdict verdict);
  // Blocks until `batches` batches have entered Run since the start; false after ten seconds.
  bool WaitForBatches(int batches);
  int batches() const;

  const HostExporter& exporter() const { return exporter_; }

  const EngineInfo& info() const override { return info_; }
  DeviceMemory memory() const override { return inner_->memory(); }
  absl::StatusOr<LayerPtr> LoadLayer(const LayerSource& source) override { return inner_->LoadLayer(source); }
  absl::StatusOr<RowBuffer> AcquireRows(std::size_t bytes) override { return inner_->AcquireRows(bytes); }
  absl::StatusOr<ExportedMemory> ExportMemory(std::size_t bytes) override { return exporter_.Export(bytes); }
  absl::Status Run(const Layer& layer, absl::Span<const Segment> segments, StageTimes* times) override;

 private:
  const std::unique_ptr<Engine> inner_;
  EngineInfo info_;
  HostExporter exporter_;
  mutable Mutex mutex_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mutex_) = true;
  int batches_ ABSL_GUARDED_BY(mutex_) = 0;
  Verdict verdict_ ABSL_GUARDED_BY(mutex_);  // may be none
};

// Two planned layers, "tiny/0" and "tiny/1", of random weights.
std::vector<PlannedLayer> TinyPlan();

// A request for tiny/0 with rows that follow from its id: bf16 patterns of finite numbers.
v1::ForwardRequest MakeRequest(std::uint64_t id, std::int64_t rows);

class ServerTest : public ::testing::Test {
 protected:
  ServerTest();
  ~ServerTest() override;

  // Options of the server to come; an ephemeral port, no metrics, small limits.
  ServerOptions options_;

  // Fails the test when it cannot start. Without `load` the layers stay loading.
  void Start(bool load = true);
  void Start(std::unique_ptr<Engine> engine, std::vector<PlannedLayer> plan, bool load);

  grpc::Status Forward(const v1::ForwardRequest& request, v1::ForwardResponse* response,
                       std::chrono::milliseconds timeout = std::chrono::seconds(10));
  std::string Scrape();
  // The number behind a series such as `expertd_calls` or `expertd_rejected_total{reason="busy"}`; -1: none.
  double Metric(const std::string& series);
  // grpc.health.v1: 1 SERVING, 2 NOT_SERVING, 0 unknown service, -1 no answer.
  int HealthOf(const std::string& service, const std::string& address = "");
  // Polls until it holds, for ten seconds at most.
  static bool Eventually(const std::function<bool()>& holds);

  GatedEngine* engine_ = nullptr;  // owned by the server
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Expertd::Stub> stub_;
  std::atomic<int> engine_lost_ = 0;
};

}  // namespace expertd::testing
