// What the CUDA tests share: a fixture that skips, visibly, where there is no GPU; random arrays of either element
// type; distances to the double reference.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/host.h"
#include "kernels/reference/elements.h"
#include "kernels/reference/ops.h"
#include "tests/gpu/device.h"
#include "tests/gpu/routed_ids.h"
#include "tests/support/random.h"

namespace expertd::testing {

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }
};

// Skips where the GPU is no Hopper, too.
class HopperGpuTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    if (cuda::CurrentDevice()->compute_capability != 90) GTEST_SKIP() << "not a Hopper device";
  }
};

#define EXPERTD_ASSERT_OK(expression)                            \
  do {                                                           \
    const absl::Status status_ = (expression);                   \
    ASSERT_TRUE(status_.ok()) << #expression << ": " << status_; \
  } while (false)

inline constexpr DType kRowTypes[] = {DType::kBF16, DType::kF32};

// Whether only one small case of every kernel is wanted: under compute-sanitizer each takes a hundred times as long.
inline bool SmallTests() {
  const char* const tests = std::getenv("EXPERTD_GPU_TESTS");
  return tests != nullptr && std::strcmp(tests, "small") == 0;
}
template <typename T>
std::vector<T> Cases(std::initializer_list<T> all, std::initializer_list<T> small) {
  return SmallTests() ? small : all;
}

// The sizes at which ops go wrong: nothing, one, a warp, a tile, several tiles, each with a neighbour.
inline std::vector<std::int64_t> RowCounts() {
  return Cases<std::int64_t>({0, 1, 2, 31, 32, 33, 127, 128, 129, 1000, 4097}, {0, 33});
}
inline std::vector<std::int64_t> ExpertCounts() {
  return Cases<std::int64_t>({1, 8, 60, 64, 128, 160, 256, 384}, {60});
}

// An array of bf16 or f32 on the host.
struct HostArray {
  DType dtype = DType::kBF16;
  std::vector<std::byte> bytes;

  HostArray(DType type, std::int64_t count) : dtype(type), bytes(static_cast<std::size_t>(BytesOf(type, count))) {}
  static HostArray Normal(DType type, std::int64_t count, std::uint64_t seed, double scale = 1.0) {
    HostArray array(type, count);
    Random random(seed);
    for (std::int64_t i = 0; i < count; ++i) array.out().Set(i, random.Normal() * scale);
    return array;
  }
  HostArray(DType type, std::vector<std::byte> data) : dtype(type), bytes(std::move(data)) {}

  reference::In in() const { return {bytes.data(), dtype}; }
  reference::Out out() { return {bytes.data(), dtype}; }
  std::int64_t size() const { return static_cast<std::int64_t>(bytes.size()) / (BitsOf(dtype) / 8); }
};

// ||got - want|| / ||want||; infinite when something is not a number. Two empty or zero arrays are equal.
inline double RelativeError(reference::In got, reference::In want, std::int64_t count) {
  double difference = 0, norm = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  if (difference == 0) return 0;
  const double error = std::sqrt(difference / norm);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}
// Rounding once to the element type; sums in f32 add a little.
inline double Tolerance(DType dtype) { return dtype == DType::kBF16 ? 3e-3 : 2e-6; }

#define EXPECT_CLOSE(got, want, tolerance)                                                           \
  do {                                                                                               \
    ASSERT_EQ((got).size(), (want).size());                                                          \
    EXPECT_LE(::expertd::testing::RelativeError((got).in(), (want).in(), (want).size()), tolerance); \
  } while (false)

// What an op left in `device`, as an array of `dtype`.
inline HostArray Fetch(const DeviceArray<std::byte>& device, DType dtype) { return {dtype, device.Host()}; }

// Ids of `rows` rows: k different experts each, with every 7th slot -1 where `holes`.
inline std::vector<std::int32_t> TestIds(std::int64_t rows, std::int64_t e, std::int64_t k, bool holes) {
  std::vector<std::int32_t> ids = RoutedIds(rows, e, k);
  for (std::size_t s = 3; holes && s < ids.size(); s += 7) ids[s] = -1;
  return ids;
}

}  // namespace expertd::testing
