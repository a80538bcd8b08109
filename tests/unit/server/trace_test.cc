#include <gmock/gmock.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "server/trace/span_writer.h"
#include "tests/support/certificates.h"

namespace expertd::testing {
namespace {

using nlohmann::json;

constexpr char kTraceparent[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

TEST(TraceparentTest, IsReadAsTheSpecificationSays) {
  const auto context = ParseTraceparent(kTraceparent);
  ASSERT_TRUE(context);
  EXPECT_EQ(context->trace(), "0af7651916cd43dd8448eb211c80319c");
  EXPECT_EQ(context->parent(), "b7ad6b7169203331");
  EXPECT_TRUE(context->sampled);
  EXPECT_FALSE(ParseTraceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-fe")->sampled);
  EXPECT_TRUE(ParseTraceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff")->sampled);
  EXPECT_TRUE(ParseTraceparent("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-comes"))
      << "a later version";
}

TEST(TraceparentTest, WhatIsNotValidIsPassedOver) {
  for (const char* text : {
           "",
           "00",
           "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
           "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
           "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
           "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
           "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
           "00-00000000000000000000000000000000-b7ad6b7169203331-01",
           "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
           "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
           "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
           "00-0af7651916cd43dd8448eb211c80319cb-7ad6b7169203331-01",
       }) {
    EXPECT_FALSE(ParseTraceparent(text)) << text;
  }
}

RequestSpan MakeSpan(std::uint64_t id) {
  RequestSpan span = {.context = *ParseTraceparent(kTraceparent),
                      .rpc = "Forward",
                      .model = "m",
                      .layer = 3,
                      .request_id = id,
                      .rows = 16,
                      .tenant = "team"};
  span.start = std::chrono::system_clock::time_point(std::chrono::seconds(1'000'000'000));
  span.decode = 10e-6;
  span.queue = 20e-6;
  span.stages.gemm = 70e-6;
  span.total = 100e-6;
  return span;
}

std::vector<json> ReadLines(const std::string& path) {
  std::ifstream file(path);
  std::vector<json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(json::parse(line));
  return lines;
}

TEST(SpanTest, ARequestIsAServerSpanWithItsStagesBelow) {
  RequestSpan failed = MakeSpan(8);
  failed.code = 8;
  failed.message = "busy";
  failed.tenant = "not utf-8: \xff";
  const json line = json::parse(EncodeSpans({MakeSpan(7), failed}, "1.2"));
  const json& scope = line["resourceSpans"][0]["scopeSpans"][0];
  EXPECT_EQ(scope["scope"]["name"], "expertd");
  const json& spans = scope["spans"];
  ASSERT_EQ(spans.size(), 8);
  EXPECT_EQ(spans[0]["traceId"], "0af7651916cd43dd8448eb211c80319c");
  EXPECT_EQ(spans[0]["parentSpanId"], "b7ad6b7169203331");
  EXPECT_EQ(spans[0]["name"], "expertd.v1.Expertd/Forward");
  EXPECT_EQ(spans[0]["kind"], 2);
  EXPECT_EQ(spans[0]["startTimeUnixNano"], "1000000000000000000");
  EXPECT_EQ(spans[0]["endTimeUnixNano"], "1000000000000100000");
  EXPECT_EQ(spans[0]["status"]["code"], 1);
  const char* const names[] = {"decode", "queue", "gemm"};
  for (int i = 0; i < 3; ++i) {
    const json& child = spans[i + 1];
    EXPECT_EQ(child["name"], names[i]);
    EXPECT_EQ(child["parentSpanId"], spans[0]["spanId"]);
    EXPECT_EQ(child["startTimeUnixNano"], i == 0 ? spans[0]["startTimeUnixNano"] : spans[i]["endTimeUnixNano"]);
  }
  EXPECT_EQ(spans[3]["endTimeUnixNano"], "1000000000000100000");
  EXPECT_EQ(spans[4]["status"], (json{{"code", 2}, {"message", "busy"}}));
  EXPECT_NE(spans[0]["spanId"], spans[4]["spanId"]);
}

TEST(SpanTest, WhatWasRecordedIsInTheFileWhenTheWriterIsGone) {
  const TestFolder folder;
  const std::string path = folder.Path("spans.jsonl");
  auto writer = SpanWriter::Open(path, "1");
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (std::uint64_t id = 0; id < 300; ++id) (*writer)->Record(MakeSpan(id));
  writer->reset();
  std::size_t spans = 0;
  for (const json& line : ReadLines(path)) spans += line["resourceSpans"][0]["scopeSpans"][0]["spans"].size();
  EXPECT_EQ(spans, 300 * 4);
}

TEST(SpanTest, AFloodIsCutAndCounted) {
  const TestFolder folder;
  auto writer = SpanWriter::Open(folder.Path("spans.jsonl"), "1");
  ASSERT_TRUE(writer.ok());
  constexpr std::int64_t kFlood = 10'000;
  for (std::int64_t id = 0; id < kFlood; ++id) (*writer)->Record(MakeSpan(static_cast<std::uint64_t>(id)));
  const std::int64_t dropped = (*writer)->dropped();
  writer->reset();
  std::int64_t spans = 0;
  for (const json& line : ReadLines(folder.Path("spans.jsonl"))) {
    spans += static_cast<std::int64_t>(line["resourceSpans"][0]["scopeSpans"][0]["spans"].size());
  }
  EXPECT_EQ(spans, (kFlood - dropped) * 4);
}

TEST(SpanTest, AFileThatCannotBeWrittenStopsTheStart) {
  const absl::Status status = SpanWriter::Open("/nowhere/spans.jsonl", "1").status();
  EXPECT_EQ(status, absl::InvalidArgumentError("--trace-file /nowhere/spans.jsonl: No such file or directory"));
}

}  // namespace
}  // namespace expertd::testing
