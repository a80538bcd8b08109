#include "kernels/ops_check.h"

#include <string>

#include "gtest/gtest.h"
#include "kernels/reference/ops.h"

namespace expertd {
namespace {

// Something that is not null; never read by a check.
std::int32_t some_memory[64];
float some_floats[64];

FusedTopkRoutingArgs Topk() {
  return {.n = 1, .e = 4, .k = 2, .logits = some_floats, .weights = some_floats, .ids = some_memory};
}
MoeAlignBlockSizeArgs Align() {
  return {.slots = 2,
          .e = 4,
          .block = 2,
          .ids = some_memory,
          .counts = some_memory,
          .offsets = some_memory,
          .sorted_slots = some_memory,
          .block_experts = some_memory};
}
FusedRoutingScatterArgs Scatter() {
  return {.n = 1,
          .d = 1,
          .e = 4,
          .k = 1,
          .max_tokens = 1,
          .rows = some_memory,
          .ids = some_memory,
          .batched = some_memory,
          .slot_pos = some_memory,
          .counts = some_memory,
          .overflow = some_memory};
}
FusedGatherReduceArgs Gather() {
  return {.n = 1, .d = 1, .k = 1, .r = 1, .expert_out = some_memory, .slot_row = some_memory, .out = some_memory};
}
FusedMoeForwardArgs Fused() {
  return {.n = 1,
          .d = 1,
          .e = 4,
          .k = 1,
          .f = 1,
          .rows = some_memory,
          .ids = some_memory,
          .weights = some_floats,
          .gate_up = some_memory,
          .down = some_memory,
          .out = some_memory};
}
MoeGroupedGemmArgs Gemm() {
  return {.positions = 1,
          .e = 4,
          .in = 1,
          .out_features = 1,
          .x = some_memory,
          .offsets = some_memory,
          .w = some_memory,
          .out = some_memory};
}
FusedDispatchPackArgs Pack() {
  return {.n = 1,
          .d = 1,
          .e = 4,
          .k = 1,
          .shards = 2,
          .rows = some_memory,
          .ids = some_memory,
          .packed = some_memory,
          .source = some_memory,
          .counts = some_memory};
}

// The message after `change` was made to valid arguments.
template <class Args, class Change>
std::string MessageOf(Args args, Change change) {
  EXPECT_TRUE(Check(args).ok()) << Check(args);
  change(args);
  const absl::Status status = Check(args);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(OpsCheckTest, NamesFieldValueAndLimit) {
  EXPECT_EQ(MessageOf(Topk(), [](auto& a) { a.k = 5; }), "k: 5 is outside 1..4");
  EXPECT_EQ(MessageOf(Topk(), [](auto& a) { a.k = 65; }), "k: 65 is outside 1..64");
  EXPECT_EQ(MessageOf(Topk(), [](auto& a) { a.e = 4097; }), "e: 4097 is outside 1..4096");
  EXPECT_EQ(MessageOf(Topk(), [](auto& a) { a.n = -1; }), "n: -1 is outside 0..1073741823");
  EXPECT_EQ(MessageOf(Topk(), [](auto& a) { a.n = 1 << 30; }), "n: 1073741824 is outside 0..1073741823");
  EXPECT_EQ(MessageOf(Topk(), [](auto& a) { a.logits = nullptr; }), "logits: is null");
  EXPECT_EQ(MessageOf(Topk(), [](auto& a) { a.rule.correction_bias = true; }),
            "correction_bias: is null, but the rule has one");
  EXPECT_EQ(MessageOf(Topk(), [](auto& a) { a.rule.group_score = GroupScore::kMax, a.rule.n_group = 3; }),
            "n_group: 3 does not divide 4 experts");
  EXPECT_EQ(MessageOf(Align(), [](auto& a) { a.block = 0; }), "block: 0 is outside 1..65536");
  EXPECT_EQ(MessageOf(Align(), [](auto& a) { a.slots = -1; }), "slots: -1 is outside 0..2147483647");
  EXPECT_EQ(MessageOf(Align(), [](auto& a) { a.ids = nullptr; }), "ids: is null");
  EXPECT_EQ(MessageOf(Scatter(), [](auto& a) { a.dtype = DType::kF16; }), "dtype: f16 is neither bf16 nor f32");
  EXPECT_EQ(MessageOf(Scatter(), [](auto& a) { a.max_tokens = 1 << 29; }),
            "max_tokens: 536870912 is outside 0..536870911");
  EXPECT_EQ(MessageOf(Gather(), [](auto& a) { a.d = 65537; }), "d: 65537 is outside 1..65536");
  EXPECT_EQ(MessageOf(Gather(), [](auto& a) { a.out_dtype = DType::kI32; }), "out_dtype: i32 is neither bf16 nor f32");
  EXPECT_EQ(MessageOf(Gather(), [](auto& a) { a.expert_out = nullptr; }), "expert_out: is null");
  EXPECT_EQ(MessageOf(Fused(), [](auto& a) { a.f = 0; }), "f: 0 is outside 1..262144");
  EXPECT_EQ(MessageOf(Fused(), [](auto& a) { a.weights = nullptr; }), "weights: is null");
  EXPECT_EQ(MessageOf(Gemm(), [](auto& a) { a.in = 0; }), "in: 0 is outside 1..262144");
  EXPECT_EQ(MessageOf(Pack(), [](auto& a) { a.shards = 5; }), "shards: 5 is outside 1..4");
}

TEST(OpsCheckTest, NothingToDoNeedsNoMemory) {
  EXPECT_TRUE(reference::ActivationForward({.m = 0, .f = 4}).ok());
  EXPECT_TRUE(reference::ActivationBackward({.m = 0, .f = 4}).ok());
  EXPECT_TRUE(reference::FusedTopkRouting({.n = 0, .e = 4, .k = 2}).ok());
  EXPECT_TRUE(reference::FusedGatherReduce({.n = 0, .d = 4, .k = 2}).ok());
  EXPECT_TRUE(reference::FusedWeightedScatter({.n = 0, .d = 4, .k = 2}).ok());
  EXPECT_TRUE(reference::FusedRoutingWeightGrad({.n = 0, .d = 4, .k = 2}).ok());
  EXPECT_TRUE(reference::MoeGroupedGemm({.positions = 0, .e = 4, .in = 2, .out_features = 2}).ok());
  EXPECT_TRUE(reference::FusedMoeForward({.n = 0, .d = 4, .e = 4, .k = 2, .f = 2}).ok());
}

}  // namespace
}  // namespace expertd
