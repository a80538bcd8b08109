// Loading: what is refused, what a layer says of itself, and loading beside running.
#include <atomic>
#include <thread>

#include "tests/contract/harness.h"

namespace expertd::contract {
namespace {

using LoadTest = EngineTest;
EXPERTD_ENGINE_SUITE(LoadTest, ReferenceAndEngines());

// A source that claims another spec than the one its weights were made for. Its weights are not to be touched.
class Mislabelled final : public LayerSource {
 public:
  explicit Mislabelled(const LayerSpec& spec) : spec_(spec) {}
  const LayerSpec& spec() const override { return spec_; }
  RouterWeights router() const override { return Touched<RouterWeights>(); }
  ExpertWeights expert(std::int64_t) const override { return Touched<ExpertWeights>(); }
  ExpertWeights shared() const override { return Touched<ExpertWeights>(); }
  VectorView shared_gate() const override { return Touched<VectorView>(); }
  void Release(std::int64_t) const override {}
  absl::StatusOr<std::string> Fingerprint() const override { return std::string("0"); }

 private:
  template <class T>
  T Touched() const {
    ADD_FAILURE() << "weights were read for an invalid spec";
    return {};
  }
  const LayerSpec spec_;
};

TEST_P(LoadTest, RefusesInvalidSpecsByName) {
  struct Broken {
    const char* field;
    void (*change)(LayerSpec&);
  };
  const Broken kBroken[] = {
      {"hidden_size", [](LayerSpec& s) { s.hidden_size = 0; }},
      {"hidden_size", [](LayerSpec& s) { s.hidden_size = kMaxHiddenSize + 1; }},
      {"num_experts", [](LayerSpec& s) { s.num_experts = -1; }},
      {"num_experts", [](LayerSpec& s) { s.num_experts = kMaxExperts + 1; }},
      {"experts_per_token", [](LayerSpec& s) { s.experts_per_token = 0; }},
      {"experts_per_token", [](LayerSpec& s) { s.experts_per_token = 5; }},
      {"intermediate_size", [](LayerSpec& s) { s.intermediate_size = 0; }},
      {"shared_intermediate_size", [](LayerSpec& s) { s.shared_intermediate_size = -1; }},
      {"held_experts", [](LayerSpec& s) { s.first_expert = 2; }},
      {"n_group", [](LayerSpec& s) { s.routing.group_score = GroupScore::kMax, s.routing.n_group = 3; }},
      {"experts_per_token", [](LayerSpec& s) { s.experts_per_token = 1, s.routing.weigh = Weigh::kSparseMixer; }},
  };
  for (const Broken& broken : kBroken) {
    LayerSpec spec = SimpleSpec(64, 4, 2, 32);
    broken.change(spec);
    const auto layer = engine().LoadLayer(Mislabelled(spec));
    EXPECT_EQ(layer.status().code(), absl::StatusCode::kInvalidArgument) << broken.field;
    EXPECT_THAT(std::string(layer.status().message()), ::testing::HasSubstr(broken.field));
  }
}

TEST_P(LoadTest, TheLayerDescribesItself) {
  const auto source = MakeRandomLayer(SimpleSpec(64, 4, 2, 32));
  const LayerPtr layer = Load(*source);
  ASSERT_NE(layer, nullptr);
  EXPECT_EQ(layer->spec().Canonical(), source->spec().Canonical());
  EXPECT_EQ(layer->spec().Name(), source->spec().Name());
  EXPECT_EQ(layer->fingerprint(), source->Fingerprint().value());
  EXPECT_GE(layer->weight_bytes(), 4 * 3 * 64 * 32 * 2);
  EXPECT_FALSE(layer->path().empty());
}

TEST_P(LoadTest, TheEngineDescribesItself) {
  const EngineInfo& info = engine().info();
  EXPECT_FALSE(info.device.empty());
  EXPECT_FALSE(info.description.empty());
  EXPECT_FALSE(info.numerics_id.empty());
  EXPECT_GE(info.concurrency, 1);
  EXPECT_GE(info.max_batch_rows, 1);
  EXPECT_GE(info.max_k, 16);
}

TEST_P(LoadTest, AnotherEnginesLayerIsRefused) {
  const auto source = MakeRandomLayer(SimpleSpec(64, 4, 2, 32));
  const std::unique_ptr<Engine> other = Make({});
  const auto foreign = other->LoadLayer(*source);
  ASSERT_TRUE(foreign.ok());
  std::vector<Part> parts = {MakePart(1, 64, DType::kBF16, 1)};
  EXPECT_EQ(RunParts(engine(), **foreign, parts).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(LoadTest, TheSourceMayGoAwayOnceLoaded) {
  auto source = MakeRandomLayer(SimpleSpec(64, 4, 2, 32));
  const LayerPtr layer = Load(*source);
  source.reset();
  Part part = MakePart(3, 64, DType::kBF16, 1);
  RunPart(engine(), *layer, part);
  ExpectMatchesReference(*MakeRandomLayer(SimpleSpec(64, 4, 2, 32)), part);
}

TEST_P(LoadTest, LoadingBesideRunningChangesNothing) {
  LayerSpec spec = SimpleSpec(96, 8, 2, 64);
  const auto source = MakeRandomLayer(spec);
  const LayerPtr layer = Load(*source);
  Part part = MakePart(20, 96, DType::kBF16, 1);
  const Rows alone = RunPart(engine(), *layer, part);
  std::atomic<bool> loaded = false;
  std::thread loader([&] {
    for (std::uint64_t seed = 2; seed < 8; ++seed) {
      EXPECT_NE(Load(*MakeRandomLayer(spec, {.seed = seed})), nullptr);
    }
    loaded = true;
  });
  int differences = 0;
  do {
    differences += RunPart(engine(), *layer, part) == alone ? 0 : 1;
  } while (!loaded);
  loader.join();
  EXPECT_EQ(differences, 0);
}

TEST_P(LoadTest, LayersOfDifferentShapesServeSideBySide) {
  const auto small = MakeRandomLayer(SimpleSpec(33, 3, 1, 9)), large = MakeRandomLayer(SimpleSpec(160, 16, 4, 96));
  const LayerPtr small_layer = Load(*small), large_layer = Load(*large);
  for (int round = 0; round < 2; ++round) {
    Part a = MakePart(5, 33, DType::kBF16, 1), b = MakePart(40, 160, DType::kBF16, 2);
    RunPart(engine(), *small_layer, a);
    RunPart(engine(), *large_layer, b);
    ExpectMatchesReference(*small, a);
    ExpectMatchesReference(*large, b);
  }
}

}  // namespace
}  // namespace expertd::contract
