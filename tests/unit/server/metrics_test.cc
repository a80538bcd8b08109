// What a scrape shows, against the table that operators read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/metric_family.h>

#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/expert_load.h"
#include "tests/unit/server/server_fixture.h"

namespace expertd::testing {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;

using Labels = std::set<std::string>;

struct Documented {
  Labels labels;
  bool optional = false;  // "with `--flag`": only there when that is given
};

// The rows `| names | labels | what |` under "## Metrics".
std::map<std::string, Documented> ReadTable(const std::string& path) {
  std::map<std::string, Documented> table;
  std::ifstream file(path);
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (absl::StartsWith(line, "## ")) inside = line == "## Metrics";
    if (!inside || !absl::StartsWith(line, "| `")) continue;
    const std::vector<std::string> cells = absl::StrSplit(line, '|');
    Documented documented{.optional = absl::StrContains(cells.at(3), "with `--")};
    for (const absl::string_view label : absl::StrSplit(cells.at(2), ',')) {
      const std::string name(absl::StripAsciiWhitespace(label));
      if (!name.empty()) documented.labels.insert(name);
    }
    for (const absl::string_view name : absl::StrSplit(cells.at(1), ',')) {
      table[std::string(absl::StripAsciiWhitespace(name).substr(1, absl::StripAsciiWhitespace(name).size() - 2))] =
          documented;
    }
  }
  return table;
}

// Label names by family, from the text format.
std::map<std::string, Labels> ReadScrape(const std::string& text) {
  std::map<std::string, Labels> families;
  std::string family;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (absl::StartsWith(line, "# TYPE ")) {
      family = std::vector<std::string>(absl::StrSplit(line, ' ')).at(2);
      families[family];
    } else if (absl::StartsWith(line, family + "{") || absl::StartsWith(line, family + "_bucket{")) {
      const std::size_t begin = line.find('{') + 1;
      for (const absl::string_view pair : absl::StrSplit(line.substr(begin, line.rfind('}') - begin), "\",")) {
        const std::string label(pair.substr(0, pair.find('=')));
        if (!label.empty() && label != "le") families[family].insert(label);
      }
    }
  }
  return families;
}

class MetricsTest : public ServerTest {
 protected:
  // Two rows of two experts each, as the caller says.
  static v1::ForwardRequest PreRouted(const std::vector<std::int32_t>& ids) {
    v1::ForwardRequest request = MakeRequest(1, 2);
    request.mutable_routing()->set_k(2);
    request.mutable_routing()->set_topk_ids(
        std::string(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(ids[0])));
    const std::vector<float> weights(ids.size(), 0.5f);
    request.mutable_routing()->set_topk_weights(
        std::string(reinterpret_cast<const char*>(weights.data()), weights.size() * sizeof(float)));
    return request;
  }
};

TEST_F(MetricsTest, TheTableInTheReadmeIsWhatAScrapeShows) {
  options_.expert_series = 100;
  Start();
  v1::ForwardResponse response;
  ASSERT_TRUE(Forward(MakeRequest(1, 1), &response).ok());
  const std::map<std::string, Documented> table = ReadTable(EXPERTD_SERVER_README);
  ASSERT_GT(table.size(), 15u);
  const std::map<std::string, Labels> live = ReadScrape(Scrape());
  for (const auto& [name, labels] : live) {
    // prometheus-cpp's own, about scrapes
    if (absl::StartsWith(name, "exposer_")) continue;
    const auto row = table.find(name);
    ASSERT_NE(row, table.end()) << name << " is not in the README's table";
    EXPECT_EQ(labels, row->second.labels) << name;
  }
  for (const auto& [name, documented] : table) {
    EXPECT_TRUE(documented.optional || live.count(name) > 0) << name << " is in the table and not in a scrape";
  }
  EXPECT_EQ(live.count("expertd_expert_rows_total"), 1u);
}

TEST_F(MetricsTest, RowsOfEachExpertAndTheirImbalance) {
  options_.expert_series = 100;
  Start();
  v1::ForwardResponse response;
  const grpc::Status status = Forward(PreRouted({0, 3, 3, -1}), &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_FALSE(response.result().has_routing()) << "asked for by the metrics only";
  EXPECT_EQ(Metric(R"(expertd_expert_rows_total{layer="tiny/0",expert="0"})"), 1);
  EXPECT_EQ(Metric(R"(expertd_expert_rows_total{layer="tiny/0",expert="1"})"), 0);
  EXPECT_EQ(Metric(R"(expertd_expert_rows_total{layer="tiny/0",expert="3"})"), 2);
  EXPECT_DOUBLE_EQ(Metric(R"(expertd_expert_imbalance{layer="tiny/0"})"), 2.0 / (3.0 / 4));
  EXPECT_EQ(Metric(R"(expertd_expert_imbalance{layer="tiny/1"})"), 0);
}

TEST_F(MetricsTest, ExpertSeriesAreBounded) {
  options_.expert_series = 7;  // the first layer's four and not the second's
  Start();
  const std::string text = Scrape();
  EXPECT_TRUE(absl::StrContains(text, R"(expertd_expert_rows_total{layer="tiny/0",expert="3"})"));
  EXPECT_FALSE(absl::StrContains(text, R"(expertd_expert_rows_total{layer="tiny/1")"));
  EXPECT_TRUE(absl::StrContains(text, R"(expertd_expert_imbalance{layer="tiny/1"})"));
}

TEST(ExpertLoadTest, AnEndedLayerGivesItsSeriesToTheNext) {
  ExpertLoad load(/*max_series=*/8);
  const auto series = [&load] {
    const auto families = load.Collect();
    return families.at(0).metric.size();
  };
  LayerSpec six, eight;
  six.model = eight.model = "m";
  six.num_experts = 6;
  eight.num_experts = 8;
  eight.layer = 1;
  load.AddLayer(six);
  load.AddLayer(eight);
  EXPECT_EQ(series(), 6u) << "the second does not fit beside the first";
  load.RemoveLayer(six.Name());
  load.RemoveLayer(eight.Name());
  load.RemoveLayer("m/7");
  EXPECT_EQ(series(), 0u);
  load.AddLayer(eight);
  EXPECT_EQ(series(), 8u);
  eight.num_experts = 4;
  load.AddLayer(eight);
  EXPECT_EQ(series(), 4u) << "another layer of that name";
  const std::int32_t ids[] = {3, 4, -1};
  load.Count(eight, ids);
  EXPECT_EQ(load.Collect().at(0).metric.at(3).counter.value, 1);
}

TEST_F(MetricsTest, ExpertsAreNotCountedUnasked) {
  Start();
  v1::ForwardResponse response;
  ASSERT_TRUE(Forward(PreRouted({0, 1, 2, 3}), &response).ok());
  EXPECT_FALSE(absl::StrContains(Scrape(), "expertd_expert"));
}

TEST_F(MetricsTest, TheDevicesMemoryIsTold) {
  Start();
  EXPECT_GT(Metric(R"(expertd_device_memory_bytes{kind="free"})"), 0);
  EXPECT_GE(Metric(R"(expertd_device_memory_bytes{kind="total"})"),
            Metric(R"(expertd_device_memory_bytes{kind="free"})"));
}

}  // namespace
}  // namespace expertd::testing
