#include "server/lane/region.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <unistd.h>

#include <limits>
#include <string>

#include "tests/unit/lane/exporting_engine.h"

namespace expertd {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();

TEST(MemoryFileTest, APeerCanNeitherShrinkNorGrowNorUnsealIt) {
  const absl::StatusOr<MemoryFile> file = MemoryFile::Create(10'000);
  ASSERT_TRUE(file.ok()) << file.status();
  const Descriptor peer(dup(file->descriptor()));  // what SCM_RIGHTS would give it
  EXPECT_EQ(file->size() % static_cast<std::size_t>(sysconf(_SC_PAGESIZE)), 0u);
  EXPECT_GE(file->size(), 10'000u);
  EXPECT_NE(ftruncate(peer.get(), 0), 0);
  EXPECT_NE(ftruncate(peer.get(), static_cast<off_t>(file->size()) * 2), 0);
  EXPECT_NE(fcntl(peer.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  // What it may do to its own pages: punch a hole. The server reads zeros there and does not fault.
  file->data()[0] = std::byte{7};
  ASSERT_EQ(fallocate(peer.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
  EXPECT_EQ(file->data()[0], std::byte{0});
}

class RegionTest : public ::testing::Test {
 protected:
  // 16 KiB of which the first kRowsOffset bytes are no rows.
  static constexpr std::size_t kSize = 16384, kRowsOffset = 1024;

  std::shared_ptr<Region> Make() {
    absl::StatusOr<std::shared_ptr<Region>> region = Region::Create(budget_, kSize, kRowsOffset);
    EXPECT_TRUE(region.ok()) << region.status();
    return region.ok() ? *region : nullptr;
  }

  const std::shared_ptr<RegionBudget> budget_ = std::make_shared<RegionBudget>("--fast-lane-mib", 3 * kSize);
};

TEST_F(RegionTest, LendsRangesThatLieInsideAndApart) {
  const std::shared_ptr<Region> region = Make();
  const struct {
    std::uint64_t input, output, input_bytes, output_bytes;
    const char* message;  // null: fine
  } cases[] = {
      {1024, 2048, 1024, 1024, nullptr},
      {2048, 1024, 1024, 1024, nullptr},
      {1024, kSize - 1024, 64, 1024, nullptr},
      {1032, 2048, 64, 64, "region.input_offset: 1032 is not a multiple of 64"},
      {1024, 2049, 64, 64, "region.output_offset: 2049 is not a multiple of 64"},
      {960, 2048, 64, 64, "region.input_offset: 960 lies before the region's rows_offset 1024"},
      {1024, 0, 64, 64, "region.output_offset: 0 lies before the region's rows_offset 1024"},
      {kSize, 2048, 64, 64, "region.input_offset: 64 bytes from 16384 end beyond the region (16384 bytes)"},
      {1024, kSize - 64, 64, 65, "region.output_offset: 65 bytes from 16320 end beyond the region"},
      {kMost - 63, 2048, 128, 64, "region.input_offset: 128 bytes from 18446744073709551552 end beyond the region"},
      {1024, 2048, kMost, 64, "end beyond the region"},
      {1024, 1024, 64, 64, "region.output_offset: 64 bytes from 1024 overlap the input (64 bytes from 1024)"},
      {1024, 1088, 65, 64, "overlap the input"},
      {1088, 1024, 64, 65, "overlap the input"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(::testing::Message() << c.input << " " << c.output);
    const absl::StatusOr<Region::Loan> loan =
        region->Lend({.input_offset = c.input, .output_offset = c.output}, c.input_bytes, c.output_bytes);
    if (c.message == nullptr) {
      ASSERT_TRUE(loan.ok()) << loan.status();
      EXPECT_EQ(loan->input.data(), region->data() + c.input);
      EXPECT_EQ(loan->input.size(), c.input_bytes);
      EXPECT_EQ(loan->output.data(), region->data() + c.output);
    } else {
      EXPECT_EQ(loan.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(loan.status().message()), HasSubstr(c.message));
    }
  }
}

TEST_F(RegionTest, ALoanKeepsMemoryAndBudgetBeyondTheSession) {
  RegionTable table;
  std::shared_ptr<Region> region = Make();
  const std::uint64_t handle = region->handle();
  table.Add(region);
  ASSERT_TRUE(table.Find(handle).ok());
  absl::StatusOr<Region::Loan> loan = region->Lend({.input_offset = 1024, .output_offset = 2048}, 64, 64);
  ASSERT_TRUE(loan.ok());
  region.reset();
  table.Remove(handle);
  EXPECT_EQ(table.Find(handle).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(budget_->in_use(), kSize);
  loan->output.data()[63] = std::byte{1};
  loan->input.Reset();
  EXPECT_EQ(budget_->in_use(), kSize);
  loan->output.Reset();
  EXPECT_EQ(budget_->in_use(), 0u);
}

TEST_F(RegionTest, TheBudgetBoundsAllRegions) {
  const std::shared_ptr<Region> one = Make(), two = Make();
  std::shared_ptr<Region> three = Make();
  const absl::Status fourth = Region::Create(budget_, 1, 0).status();
  EXPECT_EQ(fourth.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(fourth.message()), HasSubstr("--fast-lane-mib"));
  EXPECT_NE(one->handle(), two->handle());
  three.reset();
  EXPECT_TRUE(Region::Create(budget_, 1, 0).ok());
}

TEST(DeviceRegionTest, WholeMultiplesOfTheDevicesMemoryWithinItsOwnBudget) {
  testing::ExportingEngine engine;
  const auto budget = std::make_shared<RegionBudget>("--fast-lane-device-mib", 3 * kExportedMultiple);
  absl::StatusOr<std::shared_ptr<Region>> region = Region::CreateOnDevice(budget, engine, kExportedMultiple + 1);
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_TRUE((*region)->on_device());
  EXPECT_EQ((*region)->size(), 2 * kExportedMultiple);
  EXPECT_EQ((*region)->rows_offset(), 0u);
  EXPECT_EQ(testing::HostExporter::Open((*region)->ipc_handle()), (*region)->data());
  const absl::Status over = Region::CreateOnDevice(budget, engine, 2 * kExportedMultiple).status();
  EXPECT_EQ(over.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(over.message()), HasSubstr("--fast-lane-device-mib"));

  absl::StatusOr<Region::Loan> loan =
      (*region)->Lend({.input_offset = 0, .output_offset = 2 * kExportedMultiple - 64}, 64, 64);
  ASSERT_TRUE(loan.ok()) << loan.status();
  EXPECT_FALSE((*region)->Lend({.input_offset = 0, .output_offset = 2 * kExportedMultiple - 64}, 64, 65).ok());
  region->reset();
  EXPECT_EQ(engine.exported_bytes(), 2 * kExportedMultiple) << "a request still uses it";
  loan->input.Reset();
  loan->output.Reset();
  EXPECT_EQ(engine.exported_bytes(), 0u);
  EXPECT_EQ(budget->in_use(), 0u);
}

TEST(DeviceRegionTest, ADeviceThatIsFullTakesNothingOfTheBudget) {
  testing::ExportingEngine engine(kExportedMultiple);
  const auto budget = std::make_shared<RegionBudget>("--fast-lane-device-mib", 3 * kExportedMultiple);
  const absl::Status full = Region::CreateOnDevice(budget, engine, 2 * kExportedMultiple).status();
  EXPECT_EQ(full.message(), "the device is full");
  EXPECT_EQ(budget->in_use(), 0u);
}

}  // namespace
}  // namespace expertd
