#include "server/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace expertd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Sets a variable for as long as it lives.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name_); }

 private:
  const char* name_;
};

class OptionsTest : public ::testing::Test {
 protected:
  OptionsTest() : app_("expertd", "test") { AddServerOptions(app_, &options_); }
  ~OptionsTest() override { std::remove(file_.c_str()); }

  // The command line, parsed and resolved; --checkpoint is always there.
  absl::Status Parse(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "--checkpoint=given");
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes vectors backwards
    app_.parse(arguments);
    return ResolveServerOptions(app_, options_);
  }
  std::string File(const std::string& text) {
    file_ = absl::StrCat(::testing::TempDir(), "options_", getpid(), ".toml");
    std::ofstream(file_) << text;
    return file_;
  }

  CLI::App app_;
  ServerOptions options_;
  std::string file_;
};

TEST_F(OptionsTest, DefaultsHold) {
  ASSERT_TRUE(Parse({}).ok());
  EXPECT_EQ(options_.listen, "127.0.0.1:8470");
  EXPECT_EQ(options_.metrics_address, "127.0.0.1:9470");
  EXPECT_EQ(options_.write_timeout_ms, 5000);
  EXPECT_THAT(options_.checkpoints, ElementsAre("given"));
}

TEST_F(OptionsTest, FlagBeatsVariableBeatsFileBeatsDefault) {
  const std::string file = File("max-batch-rows = 1\nmax-queued-rows = 2\nthreads = 3\nlayers = \"0-3\"\n");
  const Variable rows("EXPERTD_MAX_BATCH_ROWS", "11");
  const Variable queued("EXPERTD_MAX_QUEUED_ROWS", "12");
  const absl::Status status = Parse({"--config", file, "--max-batch-rows=21"});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(options_.max_batch_rows, 21);
  EXPECT_EQ(options_.max_queued_rows, 12);
  EXPECT_EQ(options_.threads, 3);
  EXPECT_EQ(options_.layers, "0-3");
  EXPECT_EQ(options_.max_rows_per_request, ServerOptions().max_rows_per_request);
}

TEST_F(OptionsTest, EveryOptionIsAVariableAndAKey) {
  std::set<std::string> names;
  for (const auto& [name, value] : ServerOptions().Effective()) {
    EXPECT_TRUE(names.insert(name).second) << name;
    EXPECT_NE(app_.get_option_no_throw("--" + name), nullptr) << name;
  }
  EXPECT_GT(names.size(), 20);
}

TEST_F(OptionsTest, BooleansAndListsComeFromAnywhere) {
  const std::string file = File("checkpoint = [\"a\", \"b=c\"]\ninsecure = true\n");
  const Variable finite("EXPERTD_REFUSE_NON_FINITE", "true");
  app_.parse(std::vector<std::string>{file, "--config"});
  const absl::Status status = ResolveServerOptions(app_, options_);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(options_.insecure);
  EXPECT_TRUE(options_.refuse_non_finite);
  EXPECT_THAT(options_.checkpoints, ElementsAre("a", "b=c"));
}

TEST_F(OptionsTest, RepeatedFlagsAreAList) {
  ASSERT_TRUE(Parse({"--checkpoint", "x=/y", "--checkpoint=z"}).ok());
  EXPECT_THAT(options_.checkpoints, ElementsAre("given", "x=/y", "z"));
}

TEST_F(OptionsTest, VariablesAreCheckedLikeFlags) {
  const Variable rows("EXPERTD_MAX_BATCH_ROWS", "0");
  const absl::Status status = Parse({});
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("EXPERTD_MAX_BATCH_ROWS=0: "));
}

TEST_F(OptionsTest, FilesAreCheckedToo) {
  const struct {
    const char* text;
    const char* message;
  } cases[] = {{"max-batch-row = 1\n", "unknown key max-batch-row"},
               {"[engine]\nthreads = 1\n", "unknown key engine.threads"},
               {"threads = many\n", "threads=many: "},
               {"log-level = loud\n", "log-level=loud: "}};
  for (const auto& c : cases) {
    CLI::App app("expertd", "test");
    ServerOptions options;
    AddServerOptions(app, &options);
    app.parse(std::vector<std::string>{File(c.text), "--config"});
    const absl::Status status = ResolveServerOptions(app, options);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Parse({"--config", "/no/such/file"})));
}

TEST_F(OptionsTest, BadFlagsAreUsageErrors) {
  for (const char* flag :
       {"--max-batch-rows=0", "--max-batch-rows=x", "--log-format=xml", "--listenn=a", "--threads=-1"}) {
    EXPECT_THROW(app_.parse(std::vector<std::string>{flag}), CLI::ParseError) << flag;
  }
}

TEST_F(OptionsTest, PlaintextStaysOnThisMachine) {
  const struct {
    const char* address;
    bool local;
  } cases[] = {{"127.0.0.1:8470", true},
               {"127.8.9.1:0", true},
               {"localhost:1", true},
               {"[::1]:80", true},
               {"unix:/run/x.sock", true},
               {"unix-abstract:x", true},
               {"0.0.0.0:8470", false},
               {"[::]:8470", false},
               {"10.0.0.1:1", false},
               {"127.example.com:1", false},
               {"localhost.example.com:1", false},
               {":8470", false},
               {"*:1", false},
               {"127.0.0.256:1", false}};
  for (const auto& c : cases) {
    EXPECT_EQ(IsLocalAddress(c.address), c.local) << c.address;
    ServerOptions options;
    options.checkpoints = {"x"};
    options.listen = c.address;
    EXPECT_EQ(options.Validate().ok(), c.local) << c.address;
    options.insecure = true;
    EXPECT_TRUE(options.Validate().ok()) << c.address;
  }
  ServerOptions options;
  options.checkpoints = {"x"};
  options.metrics_address = "0.0.0.0:1";
  EXPECT_THAT(std::string(options.Validate().message()), HasSubstr("--metrics-address 0.0.0.0:1: "));
  options.metrics_address = "";
  options.health_address = "0.0.0.0:1";
  EXPECT_TRUE(options.Validate().ok());
}

TEST_F(OptionsTest, DeviceRegionsNeedTheFastLaneAndRowsThatNobodyLooksAt) {
  options_.checkpoints = {"x"};
  options_.fast_lane_device_mib = 64;
  EXPECT_EQ(options_.Validate().message(), "--fast-lane-device-mib 64: needs --fast-lane-socket");
  options_.fast_lane_socket = "lane.sock";
  EXPECT_TRUE(options_.Validate().ok());
  options_.refuse_non_finite = true;
  EXPECT_EQ(options_.Validate().message(),
            "--fast-lane-device-mib 64: not with --refuse-non-finite, which looks at rows on the host");
}

TEST_F(OptionsTest, ACheckpointIsNeeded) {
  app_.parse(std::vector<std::string>{});
  EXPECT_EQ(ResolveServerOptions(app_, options_).message(),
            "--checkpoint: needed at least once (or --model-root and --max-hidden-size, to load later)");
  for (const char* bad : {"", "=dir", "name="}) {
    options_.checkpoints = {bad};
    EXPECT_FALSE(options_.Validate().ok()) << bad;
  }
}

TEST(LayerListTest, RangesAndNumbers) {
  const struct {
    const char* text;
    std::vector<std::int64_t> layers;
  } cases[] = {
      {"", {}},        {"0", {0}}, {"0-3,7", {0, 1, 2, 3, 7}}, {"7,0-1", {0, 1, 7}}, {"2-2", {2}}, {"1,1-2,2", {1, 2}},
      {"9999", {9999}}};
  for (const auto& c : cases) {
    std::vector<std::int64_t> layers;
    EXPECT_TRUE(ParseLayerList(c.text, &layers).ok()) << c.text;
    EXPECT_EQ(layers, c.layers) << c.text;
  }
}

TEST(LayerListTest, WhatIsNoLayerIsNamed) {
  for (const char* text : {",", "1,", "a", "1-", "-1", "3-2", "1-2-3", "10000", "0-99999999999999999999", "1.5"}) {
    std::vector<std::int64_t> layers;
    const absl::Status status = ParseLayerList(text, &layers);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("--layers ", text, ": '"))) << text;
  }
}

}  // namespace
}  // namespace expertd
