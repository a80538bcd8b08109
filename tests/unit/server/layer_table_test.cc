#include "server/layer_table.h"

#include <gtest/gtest.h>

#include "server/null_engine.h"
#include "tests/support/random_layer.h"

namespace expertd {
namespace {

LayerSpec Spec(const std::string& model, std::int64_t layer) {
  LayerSpec spec = testing::SimpleSpec(8, 2, 1, 8);
  spec.model = model;
  spec.layer = layer;
  return spec;
}

TEST(LayerTableTest, LayersAreUnknownThenLoadingThenServing) {
  const auto engine = MakeNullEngine({});
  LayerTable table;
  EXPECT_TRUE(absl::IsNotFound(table.Find("a", 0).status()));
  ASSERT_TRUE(table.Announce(Spec("a", 0)).ok());
  EXPECT_EQ(table.Find("a", 0).status(), absl::UnavailableError("layer a/0 is loading"));
  const auto layer = engine->LoadLayer(*testing::MakeRandomLayer(Spec("a", 0)));
  ASSERT_TRUE(layer.ok());
  table.Serve({*layer});
  ASSERT_TRUE(table.Find("a", 0).ok());
  EXPECT_EQ(*table.Find("a", 0), *layer);
}

TEST(LayerTableTest, NamesAreUniqueAndOrdered) {
  LayerTable table;
  for (const auto& [model, layer] : {std::pair("b", 1), std::pair("a", 10), std::pair("a", 2)}) {
    ASSERT_TRUE(table.Announce(Spec(model, layer)).ok());
  }
  EXPECT_TRUE(absl::IsAlreadyExists(table.Announce(Spec("a", 2))));
  std::string names;
  for (const LayerTable::Row& row : table.List()) names += row.spec.Name() + " ";
  EXPECT_EQ(names, "a/2 a/10 b/1 ");
  EXPECT_EQ(table.Find("c", 0).status().message(), "model 'c' is not served here (a, b)");
  EXPECT_EQ(table.Find("a", 3).status().message(), "layer a/3 is not served here (2 layers from 2 to 10)");
}

}  // namespace
}  // namespace expertd
