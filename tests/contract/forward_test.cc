// Every routing rule, activation, weight format, layout and size against the double reference.
#include "absl/strings/str_cat.h"
#include "tests/contract/harness.h"

namespace expertd::contract {
namespace {

using ForwardTest = EngineTest;
EXPERTD_ENGINE_SUITE(ForwardTest, Engines());

struct NamedRule {
  const char* name;
  RoutingRule rule;
};

const NamedRule kRules[] = {
    {"softmax", {}},
    {"softmax, renormalised", {.renormalise = Renormalise::kSumPlusEps}},
    {"softmax, biased choice, max(sum, eps)",
     {.correction_bias = true, .renormalise = Renormalise::kMaxSumEps, .renormalise_eps = 1e-12f}},
    {"softmax, groups by max, scaled",
     {.group_score = GroupScore::kMax, .n_group = 4, .topk_group = 2, .scale = 16.0f}},
    {"sigmoid, biased groups by two, renormalised, scaled",
     {.score = Score::kSigmoid,
      .correction_bias = true,
      .group_score = GroupScore::kTop2Sum,
      .n_group = 2,
      .topk_group = 1,
      .renormalise = Renormalise::kSumPlusEps,
      .renormalise_eps = 1e-20f,
      .scale = 2.5f}},
    {"sigmoid", {.score = Score::kSigmoid}},
    {"raw, softmax of the chosen, router bias",
     {.score = Score::kRaw, .router_bias = true, .weigh = Weigh::kSoftmaxOfChosen}},
    {"raw, sigmoid of the chosen, on the input",
     {.score = Score::kRaw, .weigh = Weigh::kSigmoidOfChosen, .weight_on_input = true}},
    {"sparse mixer", {.score = Score::kRaw, .weigh = Weigh::kSparseMixer, .jitter_eps = 0.01f}},
};

constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGelu,  Activation::kGeluTanh,
                                       Activation::kRelu, Activation::kRelu2, Activation::kSwigluOai};

struct NamedFormat {
  WeightFormat format;
  WeightLayout layout;
};

constexpr NamedFormat kFormats[] = {
    {WeightFormat::kBF16, WeightLayout::kRows},
    {WeightFormat::kBF16, WeightLayout::kColumns},
    {WeightFormat::kBF16, WeightLayout::kInterleavedColumns},
    {WeightFormat::kF16, WeightLayout::kRows},
    {WeightFormat::kF32, WeightLayout::kInterleavedRows},
    {WeightFormat::kFp8Block128, WeightLayout::kRows},
    {WeightFormat::kMxfp4, WeightLayout::kRows},
    {WeightFormat::kMxfp4, WeightLayout::kInterleavedRows},
};

// D and F beyond one fp8 block, multiples of an mxfp4 group.
LayerSpec TableSpec() {
  LayerSpec spec = SimpleSpec(160, 8, 2, 192);
  spec.routing = {};
  return spec;
}

void ExpectForward(Engine& engine, const LayerSource& source, std::int64_t n) {
  auto layer = engine.LoadLayer(source);
  ASSERT_TRUE(layer.ok()) << layer.status();
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    SCOPED_TRACE(std::string(DTypeName(dtype)));
    Part part = MakePart(n, source.spec().hidden_size, dtype, 5);
    RunPart(engine, **layer, part);
    ExpectMatchesReference(source, part);
  }
}

TEST_P(ForwardTest, EveryRoutingRuleInEveryFormat) {
  int combination = 0;
  for (const NamedRule& rule : kRules) {
    for (const NamedFormat& format : kFormats) {
      LayerSpec spec = TableSpec();
      spec.routing = rule.rule;
      spec.expert_format = format.format;
      spec.activation = kActivations[combination++ % std::size(kActivations)];
      SCOPED_TRACE(absl::StrCat(rule.name, ", ", ActivationName(spec.activation), ", ", WeightFormatName(format.format),
                                ", layout ", static_cast<int>(format.layout)));
      const DType router = combination % 3 == 0 ? DType::kF32 : DType::kBF16;
      const auto source = MakeRandomLayer(spec, {.layout = format.layout, .router_dtype = router});
      ExpectForward(engine(), *source, 9);
    }
  }
}

TEST_P(ForwardTest, EveryActivationWithAndWithoutBiasesInEveryFormat) {
  for (const Activation activation : kActivations) {
    for (const NamedFormat& format : kFormats) {
      for (const bool bias : {false, true}) {
        LayerSpec spec = TableSpec();
        spec.activation = activation;
        spec.expert_format = format.format;
        spec.expert_bias = bias;
        SCOPED_TRACE(absl::StrCat(ActivationName(activation), ", ", WeightFormatName(format.format), ", layout ",
                                  static_cast<int>(format.layout), ", bias ", bias));
        // Larger weights reach the flat ends of the activations and the clamps.
        const auto source = MakeRandomLayer(spec, {.layout = format.layout, .weight_scale = 3.0});
        ExpectForward(engine(), *source, 5);
      }
    }
  }
}

TEST_P(ForwardTest, SharedExpertsInEveryFormat) {
  for (const NamedFormat& format : kFormats) {
    for (const bool gated : {false, true}) {
      LayerSpec spec = TableSpec();
      spec.expert_format = spec.shared_format = format.format;
      spec.shared_intermediate_size = 96;
      spec.shared_gated = gated;
      SCOPED_TRACE(absl::StrCat(WeightFormatName(format.format), ", gated ", gated));
      ExpectForward(engine(), *MakeRandomLayer(spec, {.layout = format.layout}), 17);
    }
  }
  LayerSpec mixed = TableSpec();  // quantised experts beside a bf16 shared one, as published
  mixed.expert_format = WeightFormat::kFp8Block128;
  mixed.shared_intermediate_size = 300;
  ExpectForward(engine(), *MakeRandomLayer(mixed), 17);
}

TEST_P(ForwardTest, EverySize) {
  const struct {
    std::int64_t d, e, k, f;
  } kSizes[] = {{1, 1, 1, 1},     {2, 2, 1, 1},     {33, 8, 2, 17},    {72, 8, 2, 40},   {64, 1, 1, 32},
                {64, 60, 4, 32},  {64, 64, 8, 32},  {64, 128, 16, 32}, {127, 4, 2, 255}, {128, 4, 2, 256},
                {129, 4, 2, 257}, {40, 16, 16, 24}, {512, 4, 2, 768}};
  for (const auto& [d, e, k, f] : kSizes) {
    for (const WeightFormat format : {WeightFormat::kBF16, WeightFormat::kFp8Block128}) {
      LayerSpec spec = SimpleSpec(d, e, k, f);
      spec.expert_format = format;
      SCOPED_TRACE(absl::StrCat("D ", d, " E ", e, " K ", k, " F ", f, " ", WeightFormatName(format)));
      const auto source = MakeRandomLayer(spec);
      ExpectForward(engine(), *source, 5);
      ExpectForward(engine(), *source, 33);
    }
  }
}

TEST_P(ForwardTest, EveryNumberOfRows) {
  const auto source = MakeRandomLayer(SimpleSpec(72, 8, 2, 40));
  const LayerPtr layer = Load(*source);
  for (const std::int64_t n : {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300}) {
    SCOPED_TRACE(n);
    Part routed = MakePart(n, 72, DType::kBF16, 3), pre_routed = routed;
    PreRoute(pre_routed, 8, 3, 4);
    RunPart(engine(), *layer, routed);
    RunPart(engine(), *layer, pre_routed);
    ExpectMatchesReference(*source, routed);
    ExpectMatchesReference(*source, pre_routed);
  }
}

TEST_P(ForwardTest, PreRoutedWithAnyK) {
  constexpr std::int64_t kExperts = 6;
  const auto source = MakeRandomLayer(SimpleSpec(64, kExperts, 2, 32));
  const LayerPtr layer = Load(*source);
  for (const std::int64_t k : {1, 2, 3, 6, 7, 16}) {  // beyond E the rest of a row's slots is unused
    for (const bool holes : {false, true}) {
      SCOPED_TRACE(absl::StrCat("k ", k, " holes ", holes));
      for (const DType dtype : {DType::kBF16, DType::kF32}) {
        Part part = MakePart(21, 64, dtype, k);
        PreRoute(part, kExperts, k, 7, holes);
        RunPart(engine(), *layer, part);
        ExpectMatchesReference(*source, part);
      }
    }
  }
}

TEST_P(ForwardTest, PreRoutedWeightsAreAppliedAsGiven) {
  LayerSpec spec = SimpleSpec(64, 4, 2, 32);
  spec.routing.scale = 100.0f;  // neither scaled nor renormalised
  const auto source = MakeRandomLayer(spec);
  const LayerPtr layer = Load(*source);
  Part part = MakePart(2, 64, DType::kF32, 1);
  part.k = 2;
  part.ids = {3, 0, 1, 2};
  part.weights = {-2.0f, 0.5f, 0.0f, 1e-3f};
  RunPart(engine(), *layer, part);
  ExpectMatchesReference(*source, part);
}

TEST_P(ForwardTest, PreRoutedOnTheInput) {
  LayerSpec spec = SimpleSpec(64, 4, 1, 32);
  spec.routing = {.score = Score::kRaw, .weigh = Weigh::kSigmoidOfChosen, .weight_on_input = true};
  const auto source = MakeRandomLayer(spec);
  const LayerPtr layer = Load(*source);
  Part part = MakePart(9, 64, DType::kBF16, 1);
  PreRoute(part, 4, 2, 5);
  RunPart(engine(), *layer, part);
  ExpectMatchesReference(*source, part);
}

TEST_P(ForwardTest, AllRowsOnOneExpertAndAllSlotsUnused) {
  const auto source = MakeRandomLayer(SimpleSpec(72, 8, 2, 40));
  const LayerPtr layer = Load(*source);
  Part part = MakePart(300, 72, DType::kBF16, 1);
  part.k = 1;
  part.ids.assign(300, 5);
  part.weights.assign(300, 1.0f);
  RunPart(engine(), *layer, part);
  ExpectMatchesReference(*source, part);
  part.ids.assign(300, -1);
  RunPart(engine(), *layer, part);
  for (const double x : part.output.ToDoubles()) ASSERT_EQ(x, 0.0);
}

TEST_P(ForwardTest, AResultBelongsToItsRow) {
  const auto source = MakeRandomLayer(SimpleSpec(64, 8, 2, 32));
  const LayerPtr layer = Load(*source);
  Part part = MakePart(12, 64, DType::kBF16, 1);
  PreRoute(part, 8, 2, 1);
  RunPart(engine(), *layer, part);
  for (std::int64_t i = 1; i < 12; ++i) {
    EXPECT_NE(part.output.Slice(i, 1), part.output.Slice(0, 1)) << "random rows differ";
  }
}

}  // namespace
}  // namespace expertd::contract
