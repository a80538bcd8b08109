// What a request allocates on its way must not grow with its rows: they live in pooled buffers and in the transport's
// slices. A program of its own, because it counts what `operator new` gives out.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "expertd/v1/expertd.pb.h"
#include "server/null_engine.h"
#include "server/request_path.h"
#include "tests/support/random_layer.h"

namespace {
std::atomic<std::int64_t> allocated_bytes{0};

void* Allocate(std::size_t size, std::size_t alignment) {
  allocated_bytes += static_cast<std::int64_t>(size);
  void* memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) std::abort();
  return memory;
}
}  // namespace

void* operator new(std::size_t size) { return Allocate(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return Allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace expertd {
namespace {

constexpr std::int64_t kHidden = 64;
constexpr std::size_t kSliceBytes = 8 << 10;  // as gRPC's transport cuts a message

// Row buffers do not come from `operator new`; that they are reused is their pool's test.
class AllocationTest : public ::testing::Test {
 protected:
  AllocationTest() {
    LayerSpec spec = testing::SimpleSpec(kHidden, 4, 2, 32);
    spec.model = "tiny";
    EXPECT_TRUE(layers_.Announce(spec).ok());
    const auto layer = engine_->LoadLayer(*testing::MakeRandomLayer(spec));
    EXPECT_TRUE(layer.ok()) << layer.status();
    layers_.Serve({*layer});
    metrics_.AddLayer(**layer);
  }

  static grpc::ByteBuffer Message(std::int64_t rows) {
    v1::ForwardRequest request;
    request.set_model("tiny");
    request.set_rows(rows);
    request.set_dtype(v1::DTYPE_BF16);
    request.set_hidden_states(std::string(static_cast<std::size_t>(rows * kHidden * 2), '\1'));
    const std::string bytes = request.SerializeAsString();
    std::vector<grpc::Slice> slices;
    for (std::size_t at = 0; at < bytes.size(); at += kSliceBytes) slices.emplace_back(bytes.substr(at, kSliceBytes));
    return grpc::ByteBuffer(slices.data(), slices.size());
  }

  // Bytes given out between a message's arrival and the end of its answer.
  std::int64_t BytesOf(std::int64_t rows) {
    const grpc::ByteBuffer message = Message(rows);
    std::atomic<std::size_t> answer_bytes{0};
    const std::int64_t before = allocated_bytes;
    {
      const MessageSlices slices(message);
      const Arrival arrival = {.time = Clock::now()};
      path_.Submit(ScanForwardRequest(slices), slices, arrival,
                   [&answer_bytes](const absl::Status& status, grpc::ByteBuffer answer) {
                     answer_bytes = status.ok() ? answer.Length() : 1;
                   });
    }
    while (answer_bytes == 0) continue;
    EXPECT_GT(answer_bytes, static_cast<std::size_t>(rows * kHidden * 2));
    return allocated_bytes - before;
  }

  const std::unique_ptr<Engine> engine_ = MakeNullEngine({.max_batch_rows = 8192, .row_buffer_bytes = 64 << 20});
  const std::shared_ptr<Admission> admission_ = std::make_shared<Admission>(AdmissionLimits{});
  LayerTable layers_;
  Metrics metrics_;
  SchedulerObserver observer_;
  TimeSource time_;
  Scheduler scheduler_{*engine_, *admission_, {.inline_limit = std::chrono::milliseconds(100)}, time_, observer_};
  RegionTable regions_;
  RequestPath path_{*engine_, admission_, scheduler_, layers_, regions_, metrics_, RequestLimits{}};
};

TEST_F(AllocationTest, ARequestAllocatesNoMoreForMoreRows) {
  for (int i = 0; i < 100; ++i) BytesOf(i % 2 == 0 ? 1 : 4096);  // warm: lists, tables and buffers are there
  std::int64_t small = 1 << 30, large = 1 << 30;                 // the least of several: tables rehash now and then
  for (int i = 0; i < 20; ++i) {
    small = std::min(small, BytesOf(1));
    large = std::min(large, BytesOf(4096));
  }
  EXPECT_GT(small, 0) << "nothing was counted";
  EXPECT_LE(large, small + 64) << "512 KiB of rows";
  EXPECT_LE(small, 8192);
  RecordProperty("bytes", static_cast<int>(small));
}

}  // namespace
}  // namespace expertd
