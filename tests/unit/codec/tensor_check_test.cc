// A request against its layer, and the values of its tensors.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "server/codec/forward_codec.h"

namespace expertd {
namespace {

LayerSpec Spec(std::int64_t hidden_size, std::int64_t num_experts) {
  LayerSpec spec;
  spec.model = "m";
  spec.hidden_size = hidden_size;
  spec.num_experts = num_experts;
  return spec;
}

ForwardHead Head(std::int64_t rows, std::uint64_t bytes) {
  ForwardHead head;
  head.rows = rows;
  head.hidden_states.size = bytes;
  return head;
}

TEST(CheckAgainstLayerTest, TheBytesMustBeThoseOfTheShape) {
  const ForwardLimits limits = {.max_rows = 17, .max_k = 4};
  EXPECT_TRUE(CheckAgainstLayer(Head(17, 69632), Spec(2048, 8), limits).ok());
  EXPECT_TRUE(CheckAgainstLayer(Head(0, 0), Spec(2048, 8), limits).ok());
  EXPECT_EQ(CheckAgainstLayer(Head(17, 65536), Spec(2048, 8), limits).message(),
            "hidden_states: 65536 bytes do not hold rows=17 x hidden=2048 x bf16 (69632 bytes)");
  EXPECT_EQ(CheckAgainstLayer(Head(18, 73728), Spec(2048, 8), limits).message(),
            "rows: 18 is more than the 17 that one request may have");

  ForwardHead routed = Head(17, 69632);
  routed.pre_routed = true;
  routed.k = 4;
  routed.topk_ids.size = routed.topk_weights.size = 17 * 4 * 4;
  EXPECT_TRUE(CheckAgainstLayer(routed, Spec(2048, 8), limits).ok());
  routed.k = 5;
  EXPECT_EQ(CheckAgainstLayer(routed, Spec(2048, 8), limits).message(), "routing.k: 5 is not in 1..4");
}

TEST(CheckAgainstLayerTest, AProductBeyond63BitsFitsNoBytes) {
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  for (std::int64_t rows : {huge, huge / 2, huge / 4096}) {
    const absl::Status status = CheckAgainstLayer(Head(rows, 0), Spec(65536, 8), {.max_rows = huge, .max_k = 1});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("(more than 9223372036854775807 bytes)"), absl::string_view::npos) << status;
  }
  // 2^46 x 65536 is 2^62 elements, and their bytes 2^63 of bf16: the second product overflows, not the first.
  EXPECT_FALSE(CheckAgainstLayer(Head(std::int64_t{1} << 46, 0), Spec(65536, 8), {.max_rows = huge, .max_k = 1}).ok());
}

TEST(CheckRoutingTest, RowsOfDistinctExpertsArePassed) {
  std::mt19937 random(1);
  for (std::int64_t experts : {1, 2, 63, 64, 65, 128, 4096}) {
    for (std::int64_t k : {1, 2, 7, 8, 64}) {
      for (std::int64_t rows : {0, 1, 2, 33}) {
        std::vector<std::int32_t> ids;
        for (std::int64_t row = 0; row < rows; ++row) {
          std::vector<std::int32_t> all(std::max(experts, k), -1);
          std::iota(all.begin(), all.begin() + experts, 0);
          std::shuffle(all.begin(), all.end(), random);
          ids.insert(ids.end(), all.begin(), all.begin() + k);
        }
        const std::vector<float> weights(ids.size(), -0.5f);
        EXPECT_EQ(CheckRouting(ids.data(), weights.data(), rows, k, Spec(8, experts)), absl::OkStatus());
      }
    }
  }
}

// Each slot of each row, made wrong in each way.
TEST(CheckRoutingTest, NamesTheFirstSlotThatIsWrong) {
  constexpr std::int64_t kRows = 5, kK = 9, kE = 10;
  std::vector<std::int32_t> ids(kRows * kK);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i % kK);
  const std::vector<float> weights(ids.size(), 1.0f);
  const auto message = [&](const std::vector<std::int32_t>& i, const std::vector<float>& w) {
    return std::string(CheckRouting(i.data(), w.data(), kRows, kK, Spec(8, kE)).message());
  };
  EXPECT_EQ(message(ids, weights), "");
  for (std::size_t slot = 0; slot < ids.size(); ++slot) {
    const std::string at = "[" + std::to_string(slot / kK) + "," + std::to_string(slot % kK) + "]=";
    std::vector<std::int32_t> wrong_ids = ids;
    wrong_ids[slot] = kE;
    EXPECT_EQ(message(wrong_ids, weights), "topk_ids" + at + "10 is not an expert of m/0 (0..9)");
    std::vector<float> wrong_weights = weights;
    wrong_weights[slot] = -INFINITY;
    EXPECT_EQ(message(ids, wrong_weights), "topk_weights" + at + "-inf is not finite");
    wrong_ids[slot] = static_cast<std::int32_t>((slot + 1) % kK);
    const std::size_t first = std::min(slot % kK, (slot + 1) % kK), second = std::max(slot % kK, (slot + 1) % kK);
    const std::string row = std::to_string(slot / kK);
    EXPECT_EQ(message(wrong_ids, weights), "topk_ids[" + row + "," + std::to_string(second) +
                                               "]=" + std::to_string(wrong_ids[slot]) + " repeats topk_ids[" + row +
                                               "," + std::to_string(first) + "], an expert may stand in a row once");
    wrong_ids[slot] = -1;
    EXPECT_EQ(message(wrong_ids, weights), "");
  }
}

TEST(CheckRoutingTest, TheSameExpertMayStandInEveryRow) {
  const std::vector<std::int32_t> ids(100, 3);
  const std::vector<float> weights(100, 1.0f);
  EXPECT_EQ(CheckRouting(ids.data(), weights.data(), 100, 1, Spec(8, 4)), absl::OkStatus());
  EXPECT_FALSE(CheckRouting(ids.data(), weights.data(), 50, 2, Spec(8, 4)).ok());
}

template <class Bits>
void ExpectFindsEachNonFinite(DType dtype, const std::vector<Bits>& finite, const std::vector<Bits>& non_finite) {
  constexpr std::int64_t kRows = 3;
  for (std::int64_t hidden : {1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 65}) {
    std::vector<Bits> rows(kRows * hidden);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = finite[i % finite.size()];
    std::int64_t row = -7;
    EXPECT_FALSE(HasNonFinite(rows.data(), dtype, kRows, hidden, &row));
    EXPECT_EQ(row, -7);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Bits was = rows[i];
      for (Bits bits : non_finite) {
        rows[i] = bits;
        EXPECT_TRUE(HasNonFinite(rows.data(), dtype, kRows, hidden, &row));
        EXPECT_EQ(row, static_cast<std::int64_t>(i) / hidden);
      }
      rows[i] = was;
    }
  }
}

TEST(HasNonFiniteTest, FindsEveryNanAndInfinityAndNothingElse) {
  ExpectFindsEachNonFinite<std::uint16_t>(DType::kBF16,
                                          {0x0000, 0x8000, 0x7f7f, 0xff7f, 0x0001, 0x807f, 0x3f80, 0x7f00},
                                          {0x7f80, 0xff80, 0x7f81, 0x7fff, 0xffff, 0x7fc0});
  ExpectFindsEachNonFinite<std::uint32_t>(
      DType::kF32, {0x00000000, 0x80000000, 0x7f7fffff, 0xff7fffff, 0x00000001, 0x807fffff, 0x3f800000, 0x7f7f7f80},
      {0x7f800000, 0xff800000, 0x7f800001, 0x7fffffff, 0xffffffff, 0x7fc00000});
}

TEST(HasNonFiniteTest, AgreesWithIsfiniteOnEveryBf16) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto value = static_cast<std::uint16_t>(bits);
    std::int64_t row = 0;
    EXPECT_EQ(HasNonFinite(&value, DType::kBF16, 1, 1, &row), !std::isfinite(Bf16ToF32(value))) << bits;
  }
}

TEST(HasNonFiniteTest, NoRowsHaveNone) {
  std::int64_t row = 0;
  EXPECT_FALSE(HasNonFinite(nullptr, DType::kBF16, 0, 64, &row));
  EXPECT_FALSE(HasNonFinite(nullptr, DType::kF32, 5, 0, &row));
}

}  // namespace
}  // namespace expertd
