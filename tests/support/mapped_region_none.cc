// A build without CUDA.
#include "tests/support/mapped_region.h"

namespace expertd::testing {
namespace {

absl::Status NoCuda() { return absl::UnavailableError("this build has no CUDA"); }

}  // namespace

absl::StatusOr<std::unique_ptr<MappedRegion>> MappedRegion::Open(const client::DeviceRegion&) { return NoCuda(); }
MappedRegion::~MappedRegion() = default;
absl::Status MappedRegion::Write(std::uint64_t, const void*, std::size_t) { return NoCuda(); }
absl::Status MappedRegion::Read(std::uint64_t, void*, std::size_t) const { return NoCuda(); }
absl::Status MappedRegion::Fill(unsigned char) { return NoCuda(); }

}  // namespace expertd::testing
