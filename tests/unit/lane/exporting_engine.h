// An engine that exports memory of the host, as much as it is told to have, and does nothing else.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/engine.h"
#include "tests/support/host_exporter.h"

namespace expertd::testing {

class ExportingEngine : public Engine {
 public:
  explicit ExportingEngine(std::size_t device_bytes = 64 << 20) : device_bytes_(device_bytes) {
    info_.device_uuid = "GPU-of-the-test";
  }

  const EngineInfo& info() const override { return info_; }
  absl::StatusOr<LayerPtr> LoadLayer(const LayerSource&) override { return absl::UnimplementedError("no layers"); }
  absl::StatusOr<RowBuffer> AcquireRows(std::size_t) override { return absl::UnimplementedError("no rows"); }
  absl::Status Run(const Layer&, absl::Span<const Segment>, StageTimes*) override { return absl::OkStatus(); }
  absl::StatusOr<ExportedMemory> ExportMemory(std::size_t bytes) override {
    if (bytes > device_bytes_ - exporter_.bytes()) return absl::ResourceExhaustedError("the device is full");
    return exporter_.Export(bytes);
  }

  std::size_t exported_bytes() const { return exporter_.bytes(); }

 private:
  const std::size_t device_bytes_;
  EngineInfo info_;
  HostExporter exporter_;
};

}  // namespace expertd::testing
