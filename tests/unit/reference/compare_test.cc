#include "kernels/reference/compare.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"
#include "tests/support/random_layer.h"
#include "tests/support/rows.h"

namespace expertd::reference {
namespace {

TEST(CompareOutputsTest, FindsTheWorstRow) {
  const Comparison c = CompareOutputs(3, {1, 0, 10, 0, 0, 4}, {1, 0, 11, 0, 0, 2});
  EXPECT_EQ(c.worst_row, 2);
  EXPECT_DOUBLE_EQ(c.worst_row_error, 1.0);
  EXPECT_DOUBLE_EQ(c.relative_error, std::sqrt(5.0 / 126.0));
  EXPECT_TRUE(c.Within(0.2));
  EXPECT_FALSE(c.Within(0.1));
}

TEST(CompareOutputsTest, NonFiniteAnswersAreInfinitelyWrong) {
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    const Comparison c = CompareOutputs(2, {1, bad}, {1, 1});
    EXPECT_TRUE(std::isinf(c.relative_error));
    EXPECT_EQ(c.worst_row, 1);
    EXPECT_FALSE(c.Within(1e9));
  }
}

TEST(SameRoutingTest, ComparesSets) {
  EXPECT_TRUE(SameRouting({3, 1}, {0.25, 0.75}, {1, 3}, {0.75, 0.25}));
  EXPECT_TRUE(SameRouting({3, -1, 1}, {0.25, 9, 0.75}, {1, 3}, {0.75, 0.2501}));
  EXPECT_FALSE(SameRouting({3, 1}, {0.25, 0.75}, {1, 3}, {0.25, 0.75})) << "weights swapped";
  EXPECT_FALSE(SameRouting({3, 2}, {0.25, 0.75}, {1, 3}, {0.75, 0.25})) << "another expert";
  EXPECT_FALSE(SameRouting({3}, {0.25}, {1, 3}, {0.75, 0.25})) << "one fewer";
  EXPECT_FALSE(SameRouting({3, 1}, {0.25, std::nan("")}, {1, 3}, {0.75, 0.25}));
}

// A layer whose experts 0 and 1 have equal router rows: every row that wants one of them has a tie.
class TiedRouter final : public LayerSource {
 public:
  TiedRouter() : layer_(testing::MakeRandomLayer(testing::SimpleSpec(8, 4, 1, 4))), router_(4 * 8) {
    for (std::int64_t e = 0; e < 4; ++e) {
      for (std::int64_t i = 0; i < 8; ++i) {
        router_[e * 8 + i] = static_cast<float>(layer_->router().weight.At(e < 2 ? 0 : e, i));
      }
    }
  }
  const LayerSpec& spec() const override { return layer_->spec(); }
  RouterWeights router() const override {
    return {.weight = {.data = router_.data(), .dtype = DType::kF32, .out = 4, .in = 8, .out_stride = 8}};
  }
  ExpertWeights expert(std::int64_t e) const override { return layer_->expert(e); }
  ExpertWeights shared() const override { return layer_->shared(); }
  VectorView shared_gate() const override { return layer_->shared_gate(); }
  void Release(std::int64_t e) const override { layer_->Release(e); }
  absl::StatusOr<std::string> Fingerprint() const override { return layer_->Fingerprint(); }

 private:
  const std::unique_ptr<LayerSource> layer_;
  std::vector<float> router_;
};

TEST(CompareToReferenceTest, TiesAreComparedUnderTheirOwnRoutingAndMismatchesAreNot) {
  const TiedRouter source;
  const LayerRows rows{.n = 16, .rows = testing::Rows::Random(16, 8, DType::kF32, 3).ToDoubles()};
  const LayerResult right = RunLayer(source, rows);
  Answer answer{right.output, right.topk_ids, right.topk_weights};
  EXPECT_EQ(CompareToReference(source, rows, answer).relative_error, 0.0);
  EXPECT_EQ(CompareToReference(source, rows, answer).routing_rows, 16);

  std::int64_t tied = -1, clear = -1;
  for (std::int64_t i = 0; i < 16; ++i) (right.topk_ids[i] == 0 ? tied : clear) = i;
  ASSERT_TRUE(tied >= 0 && clear >= 0);

  // The other of two equal experts is as right, if its own output comes with it.
  LayerRows other = rows;
  other.k = 1;
  other.topk_ids = right.topk_ids;
  other.topk_weights = right.topk_weights;
  other.topk_ids[tied] = 1;
  answer.topk_ids[tied] = 1;
  EXPECT_GT(CompareToReference(source, rows, answer).relative_error, 1e-3);
  answer.output = RunLayer(source, other).output;
  Comparison c = CompareToReference(source, rows, answer);
  EXPECT_EQ(c.relative_error, 0.0);
  EXPECT_EQ(c.routing_ties, 1);
  EXPECT_TRUE(c.Within(1e-9));

  // Without the weights at hand nobody can tell a tie.
  EXPECT_EQ(Compare(rows, answer, {right.output, right.topk_ids, right.topk_weights}, nullptr).routing_mismatches, 1);

  // Where the choice is clear, another expert is wrong.
  answer.topk_ids[clear] = right.topk_ids[clear] == 2 ? 3 : 2;
  c = CompareToReference(source, rows, answer);
  EXPECT_EQ(c.routing_mismatches, 1);
  EXPECT_EQ(c.first_mismatch, clear);
  EXPECT_FALSE(c.Within(1e9));
}

}  // namespace
}  // namespace expertd::reference
