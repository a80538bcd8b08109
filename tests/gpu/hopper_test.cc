// Hopper's fused kernel: every tile and every width against the double reference, and bit for bit against each other.
#include <algorithm>
#include <iterator>
#include <numeric>
#include <set>

#include "kernels/cuda/hopper/fused_config.h"
#include "kernels/cuda/host.h"
#include "tests/gpu/moe_layer.h"

namespace expertd::testing {
namespace {

class HopperTest : public HopperGpuTest {};

TEST_F(HopperTest, ForwardIsTheReference) {
  struct Case {
    std::int64_t d, e, k, f;
  };
  for (const Case c : {Case{512, 8, 2, 576}, Case{576, 60, 4, 512}, Case{1024, 5, 1, 704}}) {
    for (const std::int64_t n : Cases<std::int64_t>({1, 2, 33, 129, 600}, {33})) {
      for (const bool on_input : {false, true}) {
        SCOPED_TRACE("N " + std::to_string(n) + " E " + std::to_string(c.e) + " D " + std::to_string(c.d) +
                     (on_input ? " weight on input" : ""));
        const MoeLayer layer({.n = n,
                              .d = c.d,
                              .e = c.e,
                              .k = c.k,
                              .f = c.f,
                              .weight_on_input = on_input,
                              .out_dtype = n == 33 ? DType::kF32 : DType::kBF16},
                             n == 129);
        const HostArray got(layer.sizes.out_dtype, DeviceMoeLayer(layer).Run());
        EXPECT_CLOSE(got, layer.Reference(), 5e-3);
      }
    }
  }
}

// One or two rows whose experts give every warp several units, of several shares.
TEST_F(HopperTest, StreamedWeightsAreTheReference) {
  for (const std::int64_t n : {1, 2}) {
    const MoeLayer layer({.n = n, .d = 2048, .e = 16, .k = 8, .f = SmallTests() ? 512 : 2048});
    DeviceMoeLayer device(layer);
    for (int i = 0; i < (SmallTests() ? 2 : 20); ++i)
      EXPECT_CLOSE(HostArray(DType::kBF16, device.Run()), layer.Reference(), 5e-3);
  }
}

TEST_F(HopperTest, ManyRowsAreTheReference) {
  const std::int64_t rows = SmallTests() ? 300 : 8192;
  const MoeLayer layer({.n = rows, .d = 512, .e = 128, .k = 8, .f = 512});
  const std::vector<std::byte> got = DeviceMoeLayer(layer).Run();
  for (const std::int64_t first : {std::int64_t{0}, rows / 2, rows - 32}) {
    const std::int64_t row_bytes = layer.sizes.d * 2;
    const HostArray part(
        DType::kBF16, std::vector<std::byte>(got.begin() + first * row_bytes, got.begin() + (first + 32) * row_bytes));
    EXPECT_CLOSE(part, layer.Part(first, 32).Reference(), 5e-3);
  }
}

// The last `n` rows of a layer alone, for each of `counts`, have the bits that they have among all. Adds the tiles that
// these take.
void ExpectSameBits(const MoeLayer& all, const std::vector<std::int64_t>& counts, std::set<cuda::FusedTileId>& tiles) {
  DeviceMoeLayer device(all);
  const std::vector<std::byte> want = device.Run();
  const std::int64_t row_bytes = all.sizes.d * 2;
  for (const std::int64_t n : counts) {
    tiles.insert(cuda::ChooseFusedTile({n * all.sizes.k, all.sizes.e, all.sizes.d, all.sizes.f}));
    const std::vector<std::byte> got = device.Run(all.sizes.n - n, n);
    ASSERT_TRUE(std::equal(got.begin(), got.end(), want.end() - n * row_bytes)) << n << " rows";
  }
}
std::vector<std::int64_t> Counts(std::int64_t last) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(last));
  std::iota(counts.begin(), counts.end(), 1);
  return counts;
}

// Few experts, whose rows take every width of every tile, whole and in parts.
TEST_F(HopperTest, ARowHasTheSameBitsInEveryTile) {
  std::set<cuda::FusedTileId> tiles;
  std::vector<std::int64_t> counts = SmallTests() ? std::vector<std::int64_t>{1, 18, 40, 100} : Counts(300);
  if (!SmallTests()) counts.insert(counts.end(), {511, 512, 513, 1024});
  ExpectSameBits(MoeLayer({.n = SmallTests() ? 110 : 1025, .d = 512, .e = 2, .k = 1, .f = 512}), counts, tiles);
  EXPECT_EQ(tiles.size(), 3u);
}

// Many experts, whose few rows take tiles of many.
TEST_F(HopperTest, ARowHasTheSameBitsAmongManyExperts) {
  std::set<cuda::FusedTileId> tiles;
  const std::vector<std::int64_t> counts = SmallTests() ? std::vector<std::int64_t>{1, 10, 40} : Counts(80);
  ExpectSameBits(MoeLayer({.n = 85, .d = 576, .e = 128, .k = 6, .f = 320}), counts, tiles);
  EXPECT_TRUE(tiles.contains(cuda::FusedTileId::kSome) && tiles.contains(cuda::FusedTileId::kMany));
}

}  // namespace
}  // namespace expertd::testing
